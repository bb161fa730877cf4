"""Tensors that have a shape but no numbers: on the meta device, or fake ones."""

from torch import Tensor
from torch._subclasses import FakeTensor


def is_abstract(tensor: Tensor) -> bool:
    """True where no value can be looked at, as while a plan is made (`spectrain.plan`)."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)
