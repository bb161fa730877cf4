"""SST as a careful reader of the paper writes it in plain PyTorch: the reference that speed is
compared with.

Three products a layer, y = ((x V) · s) Uᵀ, differentiated by autograd; the enhanced gradient by
dividing by s afterwards; unit vectors restored layer by layer after each step. Vectors are columns,
as in the paper. No events: only its step is timed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ThreeProductLinear(nn.Module):
    """y = ((x V) · s) Uᵀ + b with all k singular values and r of the k singular vectors trainable.

    `U_active` (m, r), `V_active` (n, r), `s` (k,) train; `U_frozen` (m, k − r) and `V_frozen`
    (n, k − r) do not. The active vectors are drawn uniformly.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        U, s, Vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        order = torch.randperm(len(s))
        active, frozen = order[:rank], order[rank:]
        self.s = nn.Parameter(s[order])
        self.U_active = nn.Parameter(U[:, active])
        self.V_active = nn.Parameter(Vh.mT[:, active])
        self.U_frozen = nn.Parameter(U[:, frozen], requires_grad=False)
        self.V_frozen = nn.Parameter(Vh.mT[:, frozen], requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        U = torch.cat((self.U_active, self.U_frozen), dim=1)
        V = torch.cat((self.V_active, self.V_frozen), dim=1)
        y = ((x @ V) * self.s) @ U.mT
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def enhance(self) -> None:
        """The paper's equation 9: the vectors' gradients without the factor s."""
        active = self.s[: self.U_active.shape[1]]
        for vectors in (self.U_active, self.V_active):
            vectors.grad /= active

    @torch.no_grad()
    def normalise(self) -> None:
        """Unit vectors and s ≥ 0 again."""
        for vectors in (self.U_active, self.V_active):
            vectors /= vectors.norm(dim=0)
        self.s.clamp_(min=0)


def exchange(model: nn.Module, rank: int) -> list[ThreeProductLinear]:
    """Put a ThreeProductLinear in the place of every linear layer of `model`; returns them."""
    made = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                made.append(ThreeProductLinear(child, rank))
                setattr(parent, name, made[-1])
    return made


def optimizer_step(optimizer: torch.optim.Optimizer, layers: Iterable[ThreeProductLinear]) -> None:
    """The optimizer's step with the paper's rules before and after it, one layer after the other."""
    for layer in layers:
        layer.enhance()
    optimizer.step()
    for layer in layers:
        layer.normalise()
