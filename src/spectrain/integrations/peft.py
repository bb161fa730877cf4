"""LoRA adapters in the format of the package peft: read, continued, and switched on one base model.

peft itself is not needed. docs/adapters.md shows the use of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from spectrain.errors import RunError, UsageError
from spectrain.parametrizations.additive import Additive
from spectrain.parametrizations.base import Parametrization, linear_shape
from spectrain.surgery import parametrized

WEIGHTS, CONFIG, ORIGIN = "adapter_model.safetensors", "adapter_config.json", "spectrain.json"
PREFIX = "base_model.model."
# Settings of peft that change what an adapter computes, and their value in an ordinary one.
_ORDINARY: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True)
class LoRAFactors:
    """What an adapter adds to one weight: scale · B A."""

    A: Tensor  # (r, n)
    B: Tensor  # (m, r)
    scale: float


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as it lies in a folder."""

    folder: Path
    layers: Mapping[str, LoRAFactors]  # by the base model's name of the layer
    others: Mapping[str, Tensor]  # parameters that it replaces whole, by the base model's names
    base: str | None  # sha256 of the base's files of weights, where spectrain wrote the adapter

    @classmethod
    def read(cls, folder: Path | str) -> PeftAdapter:
        """Read the adapter that peft or `spectrain merge --peft` wrote to `folder`.

        Raises UsageError if it is none, or of a kind that is not LoRA alone; RunError if it is damaged.
        """
        folder = Path(folder)
        config = _config(folder)
        try:
            tensors = load_file(folder / WEIGHTS)
        except FileNotFoundError:
            raise UsageError(
                f"{folder} has no {WEIGHTS}: save the adapter again by save_pretrained (pickled ones are "
                "not read)"
            ) from None
        except (OSError, SafetensorError) as error:
            raise RunError(f"{folder / WEIGHTS} is damaged: {str(error).splitlines()[0]}") from None
        layers, others = {}, {}
        for key, tensor in tensors.items():
            name = key.removeprefix(PREFIX)
            if name.endswith(".lora_A.weight"):
                layer = name.removesuffix(".lora_A.weight")
                B = tensors.get(f"{PREFIX}{layer}.lora_B.weight")
                if B is None or tensor.dim() != 2 or B.dim() != 2 or B.shape[1] != len(tensor):
                    raise UsageError(
                        f"{folder} has no pair of factors for {layer}: its lora_B is missing or of another "
                        "rank"
                    )
                layers[layer] = LoRAFactors(tensor, B, _scale(config, layer, len(tensor)))
            elif name.endswith(".lora_B.weight"):
                if f"{PREFIX}{name.removesuffix('.lora_B.weight')}.lora_A.weight" not in tensors:
                    raise UsageError(f"{folder} has {key} and no lora_A to it")
            elif ".lora_" in name:
                raise UsageError(f"{folder} has {key}, which is of no LoRA of linear layers")
            else:
                others[name] = tensor
        if not layers:
            raise UsageError(f"{folder} has no LoRA factors in its {WEIGHTS}")
        return cls(folder, layers, others, _origin(folder))

    @property
    def rank(self) -> int | None:
        """r, if all layers have the same."""
        ranks = {len(of.A) for of in self.layers.values()}
        return ranks.pop() if len(ranks) == 1 else None

    @property
    def scale(self) -> float | None:
        """The factor on B A, if all layers have the same."""
        scales = {of.scale for of in self.layers.values()}
        return scales.pop() if len(scales) == 1 else None

    def require_fit(self, model: nn.Module) -> None:
        """Raise UsageError, naming what differs, if `model` is not such a model as this one is for."""
        modules = dict(model.named_modules())
        for name, factors in self.layers.items():
            if name not in modules:
                raise UsageError(f"{self.folder} is for another base model: this one has no {name}")
            module = modules[name]
            if isinstance(module, Parametrization):
                shape = module.out_features, module.in_features
            elif isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() == 2:
                shape = linear_shape(module)
            else:
                raise UsageError(f"{self.folder} changes {name}, which is no linear layer here")
            own = len(factors.B), factors.A.shape[1]
            if own != shape:
                raise UsageError(
                    f"{self.folder} is for another base model: {name} is {_times(shape)} here, and the "
                    f"adapter is for {_times(own)}"
                )
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in self.others.items():
            found = parameters.get(name)
            if found is None or found.shape != tensor.shape:
                here = "is missing" if found is None else f"is {_times(tuple(found.shape))}"
                raise UsageError(
                    f"{self.folder} is for another base model: {name} {here} here, and the adapter has one "
                    f"of {_times(tuple(tensor.shape))}"
                )

    @torch.no_grad()
    def start(self, model: nn.Module) -> None:
        """Let the factors of `model`, to which LoRA or ReLoRA was applied, be the adapter's.

        Raises UsageError if layers, ranks or scales are not the adapter's.
        """
        self.require_fit(model)
        layers = dict(parametrized(model))
        if strange := sorted(self.layers.keys() ^ layers.keys()):
            where = "in the adapter alone" if strange[0] in self.layers else "in the method alone"
            raise UsageError(
                f"{self.folder} and the method are of other layers ({strange[0]} is {where}): choose the "
                "adapter's by --targets"
            )
        for name, factors in self.layers.items():
            layer = layers[name]
            if type(layer) is not Additive:  # a subclass has more that belongs to its factors
                raise UsageError(
                    f"{layer.method.title} has no factors that an adapter could start: take --method lora "
                    "or relora, or merge the adapter into the model first"
                )
            if len(factors.A) != len(layer.A):
                raise UsageError(
                    f"{self.folder} is of rank {len(factors.A)} at {name} and the method of rank "
                    f"{len(layer.A)}: give the adapter's"
                )
            if not math.isclose(factors.scale, layer.scale):
                raise UsageError(
                    f"{self.folder} scales B A by {factors.scale:g} at {name} and the method by "
                    f"{layer.scale:g}: give the adapter's alpha"
                )
            layer.A.copy_(factors.A)
            layer.B.copy_(factors.B)
            layer.note_versions()
        for name, tensor in self.others.items():
            model.get_parameter(name).copy_(tensor)


class Adapters:
    """LoRA adapters on one model, one of them in use at a time; the model's own weights are never changed.

    The one in use adds scale · (x Aᵀ) Bᵀ to the outputs of its layers, in the precision of its factors;
    parameters that it has whole take the place of the model's while it is in use. So without an adapter
    the model is bit for bit what it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active: str | None = None  # the one in use
        self._adapters: dict[str, PeftAdapter] = {}
        self._hooks: list[RemovableHandle] = []
        self._kept: dict[str, nn.Parameter] = {}

    @property
    def names(self) -> list[str]:
        """Those that are loaded, in this order."""
        return list(self._adapters)

    def load(self, name: str, folder: Path | str) -> None:
        """Read an adapter and call it `name`; it is not used yet. Raises as `PeftAdapter.read`, and
        UsageError if it is for another model or the name is taken."""
        if name in self._adapters:
            raise UsageError(f"there is an adapter called {name!r} already: remove it first")
        adapter = PeftAdapter.read(folder)
        adapter.require_fit(self.model)
        self._adapters[name] = adapter

    def use(self, name: str | None) -> None:
        """Let the adapter called `name` be the one in use; None: the model alone."""
        if name is not None and name not in self._adapters:
            raise UsageError(f"there is no adapter called {name!r} (there are: {self.names})")
        self._stop()
        if name is None:
            return
        adapter = self._adapters[name]
        for layer, factors in adapter.layers.items():
            module = self.model.get_submodule(layer)
            self._hooks.append(module.register_forward_hook(_adding(factors, module)))
        for key, tensor in adapter.others.items():
            own = self._kept[key] = self.model.get_parameter(key)
            _put(self.model, key, nn.Parameter(tensor.to(own), own.requires_grad))
        self.active = name

    def remove(self, name: str) -> None:
        """Forget an adapter; if it is in use, the model is alone again."""
        if self.active == name:
            self.use(None)
        if self._adapters.pop(name, None) is None:
            raise UsageError(f"there is no adapter called {name!r} (there are: {self.names})")

    def _stop(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        while self._kept:
            _put(self.model, *self._kept.popitem())
        self.active = None


def _adding(
    factors: LoRAFactors, module: nn.Module
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds the adapter's part."""
    device = next(module.parameters()).device
    A, B = factors.A.to(device), factors.B.to(device) * factors.scale

    def add(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(F.linear(given[0].to(A.dtype), A), B).to(output.dtype)

    return add


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, parameter)


def _config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA. Raises UsageError if it is none."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is no adapter of peft: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UsageError(f"{folder} is an adapter of the kind {kind}; only LORA is read")
    for key, allowed in _ORDINARY.items():
        if config.get(key) not in allowed:
            raise UsageError(
                f"{folder} has {key} = {json.dumps(config[key])}, which is more than B A beside a weight: "
                "merge it into the model by peft (merge_and_unload), and tune that"
            )
    numbers = (config.get("r"), config.get("lora_alpha"))
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise UsageError(f"{path} has no r and lora_alpha above 0")
    found: dict[str, Any] = config
    return found


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """peft's factor on B A at `layer`: alpha / r, or alpha / √r."""
    alpha = config["lora_alpha"]
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _origin(folder: Path) -> str | None:
    try:
        found = json.loads((folder / ORIGIN).read_text(encoding="utf-8")).get("base_sha256")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
