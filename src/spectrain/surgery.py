"""apply and merge: exchange a model's linear layers for a method's, and back."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.parameter import UninitializedParameter

from spectrain.errors import SpectrainWarning, UsageError
from spectrain.method import Method
from spectrain.parametrizations.base import Parametrization, is_transposed, linear_shape
from spectrain.sharding import is_sharded

Model = TypeVar("Model", bound=nn.Module)
Targets = str | Sequence[str]


def apply(
    model: Model,
    method: Method,
    targets: Targets = "all-linear",
    exclude: Sequence[str] = ("lm_head",),
    report: Callable[[str], None] | None = print,
) -> Model:
    """Exchange the targeted linear layers of `model` for `method`'s, in place; returns `model`.

    targets: "all-linear" (every linear layer but the output head), a regular expression that must
    match a whole qualified name, or a sequence of name suffixes ("q_proj", "mlp.up_proj").
    exclude: name suffixes to leave alone. report: where the table of what was matched goes (None:
    nowhere).

    Raises UsageError, before anything is changed, if no layer matches (near names are suggested), a
    layer cannot be exchanged (tied weights, weights read by its parent), or the rank is impossible.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UsageError(
            "apply: this model is wrapped in DistributedDataParallel already, which would not average "
            "the gradients of new factors; call spectrain.apply first"
        )
    matched = select(model, targets, exclude)
    rank = getattr(method, "rank", None)
    for name, linear in matched.items():
        smallest = min(linear_shape(linear))
        if rank is not None and rank > smallest:
            raise UsageError(
                f"{method.title}: rank is {rank}, but {name} is {_times(linear_shape(linear))}; "
                f"choose 1 … {smallest}, or exclude the layer"
            )
    summary = coverage(model, matched)
    for linear in matched.values():
        layer = method.parametrize(linear)
        layer.note_versions()
        replace(model, linear, layer)
    if report is not None:
        report(f"{method.title} on {summary}")
    return model


def merge(model: Model) -> Model:
    """Put the explicit W of every exchanged layer back: ordinary modules, keys and shapes as before.

    An attached optimizer is detached first. Needs at most one dense matrix above the model's own
    memory at a time. Raises UsageError if there is nothing to merge.
    """
    from spectrain.attachment import detach, is_attached

    if any(is_sharded(p) for p in model.parameters()):
        raise UsageError(
            "merge: this model is sharded over processes; take its full state dict "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True), "
            "load it into an unsharded model after apply, and merge that one"
        )
    layers = dict(parametrized(model))
    if not layers:
        raise UsageError("merge: this model has no exchanged layers (apply first; merge only once)")
    require_dense(layers)
    never_ticked = [n for n, layer in layers.items() if _trained_unattached(layer)]
    if never_ticked:
        warnings.warn(
            f"the factors of {never_ticked[0]} changed but the method's schedule never ticked: "
            "call spectrain.attach(model, optimizer) before training",
            SpectrainWarning,
            stacklevel=2,
        )
    if is_attached(model):
        detach(model)
    for layer in layers.values():
        replace(model, layer, layer.restore())
    return model


def require_dense(layers: Mapping[str, Parametrization], refused: str | None = None) -> None:
    """Raise UsageError, with the method's reason, if a layer is equal to no single matrix.

    refused: what cannot be done, in words; default: that it cannot be merged.
    """
    for name, layer in layers.items():
        if reason := layer.method.against_merge():
            what = refused or f"merge: {layer.method.title} cannot be merged"
            raise UsageError(
                f"{what}, since {reason} ({name} is one of its layers); keep the run, or the state dict: "
                "the model goes on from there as it is"
            )


def parametrized(model: nn.Module) -> Iterator[tuple[str, Parametrization]]:
    """The exchanged layers of `model` with their qualified names, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, Parametrization):
            yield name, module


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands: a layer may be shared by several parents."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)


def select(
    model: nn.Module, targets: Targets = "all-linear", exclude: Sequence[str] = ("lm_head",)
) -> dict[str, nn.Module]:
    """The layers that `apply` would exchange, by qualified name. Raises as `apply` does."""
    lazy = [n for n, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise UsageError(f"{lazy[0]} has no shape yet; run one batch through the model first")
    candidates = {n: m for n, m in model.named_modules() if _is_linear_like(m)}
    excluded = [exclude] if isinstance(exclude, str) else list(exclude)
    head = _output_head(model) if targets == "all-linear" else None
    matched = {
        name: module
        for name, module in candidates.items()
        if _matches(name, targets) and module is not head and not _has_suffix(name, excluded)
    }
    if not matched:
        raise UsageError(_no_match(model, candidates, targets))
    parents = {
        f"{parent}.out_proj".lstrip("."): parent
        for parent, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    owners = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    for name, module in matched.items():
        if not name:
            raise UsageError(
                "apply: the model is itself one layer; wrap it, as in nn.Sequential(layer)"
            )
        if module._parameters.get("weight") is None:
            raise UsageError(
                f"{name}: its weight is computed from other parameters, as by weight_norm; "
                f"exclude={name.split('.')[-1]!r} leaves it as it is"
            )
        if is_sharded(module.weight):
            raise UsageError(f"{name}: its weight is sharded already; call spectrain.apply first")
        if not module.weight.is_floating_point():
            raise UsageError(
                f"{name}: its weight is stored as {module.weight.dtype}; only floating-point "
                f"weights can be exchanged, so exclude={name.split('.')[-1]!r}"
            )
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
            raise UsageError(
                f"{name}: {type(module).__name__} computes something else than nn.Linear, which an "
                f"exchange would lose; exclude={name.split('.')[-1]!r} leaves it as it is"
            )
        if not module.weight.is_meta and not module.weight.isfinite().all():
            raise UsageError(f"{name}: its weight has NaN or infinite entries")
        if name in parents:
            raise UsageError(
                f"{name}: nn.MultiheadAttention reads this layer's weight directly and never calls "
                f"it; exclude={name.split('.')[-1]!r} leaves it dense"
            )
        if owners[id(module.weight)] > 1:
            raise UsageError(
                f"{name}: its weight is tied to another module's, which an exchange would break; "
                f"exclude={name.split('.')[-1]!r} leaves it dense"
            )
    return matched


@dataclass(frozen=True)
class Coverage:
    """What a selection covers, printed as one table."""

    rows: tuple[tuple[str, str, int, int], ...]  # (name suffix, shape, layers, parameters)
    total: int  # parameters of the whole model
    uncovered: int  # parameters of other matrices
    uncovered_names: tuple[str, ...]

    @property
    def covered(self) -> int:
        """Parameters of the selected matrices."""
        return sum(row[3] for row in self.rows)

    def __str__(self) -> str:
        layers = sum(row[2] for row in self.rows)
        lines = [
            f"{layers} layers, {self.covered:,} of {self.total:,} parameters "
            f"({self.covered / self.total:.1%})"
        ]
        width = max(len(row[0]) for row in self.rows)
        lines += [
            f"  {name:<{width}}  {shape:>13}  × {count:<4} {parameters:>14,}"
            for name, shape, count, parameters in self.rows
        ]
        if self.uncovered:
            names = ", ".join(self.uncovered_names[:4])
            more = ", …" if len(self.uncovered_names) > 4 else ""
            lines.append(f"  other matrices, left as they are: {self.uncovered:,} ({names}{more})")
        return "\n".join(lines)


def coverage(model: nn.Module, matched: dict[str, nn.Module]) -> Coverage:
    """Count what `matched` covers of `model`, by layer name and shape (out × in)."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for name, module in matched.items():
        key = name.split(".")[-1], _times(linear_shape(module))
        kinds.setdefault(key, []).append(math.prod(linear_shape(module)))
    own = {id(module.weight) for module in matched.values()}
    others = {n: p.numel() for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in own}
    return Coverage(
        rows=tuple((n, shape, len(sizes), sum(sizes)) for (n, shape), sizes in kinds.items()),
        total=sum(p.numel() for p in model.parameters()),
        uncovered=sum(others.values()),
        uncovered_names=tuple(others),
    )


def _is_linear_like(module: nn.Module) -> bool:
    linear = isinstance(module, nn.Linear) or is_transposed(module)
    return linear and not isinstance(module, Parametrization)


def _matches(name: str, targets: Targets) -> bool:
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise UsageError(f"targets: {targets!r} is no regular expression ({error})") from None
    return _has_suffix(name, targets)


def _has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def _output_head(model: nn.Module) -> nn.Module | None:
    find: Callable[[], Any] | None = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


def _no_match(model: nn.Module, candidates: dict[str, nn.Module], targets: Targets) -> str:
    if any(isinstance(module, Parametrization) for module in model.modules()):
        return "apply: the layers are exchanged already; spectrain.merge(model) first"
    if not candidates:
        return f"apply: {type(model).__name__} has no linear layer at all"
    suffixes = sorted({name.split(".")[-1] for name in candidates})
    wanted = [targets] if isinstance(targets, str) else targets
    near = {m for t in wanted for m in difflib.get_close_matches(t, suffixes, n=3, cutoff=0.5)}
    hint = (
        f"did you mean {', '.join(sorted(near))}?" if near else f"there are {', '.join(suffixes)}"
    )
    return f"apply: no layer matches targets={targets!r}; {hint}"


def _trained_unattached(layer: Parametrization) -> bool:
    if layer.clock.is_meta or layer.attached or not layer.method.has_schedule:
        return False
    return int(layer.clock) == 0 and layer.factors_changed()


def _times(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"
