"""What `attach` refuses or warns about: wiring that would train something else than was meant."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from spectrain.errors import SpectrainWarning, UsageError
from spectrain.method import Method
from spectrain.moments import Moments
from spectrain.parametrizations.base import Parametrization

_REFUSED = {
    "LBFGS": "it evaluates the loss several times within a step, so a step has no single gradient",
    "ZeroRedundancyOptimizer": "it keeps its state out of reach, divided over processes; use "
    "fully_shard to divide it",
    "SparseAdam": "it takes sparse gradients only, and factors have dense ones",
}


def check_optimizers(optimizers: Sequence[Optimizer]) -> None:
    """Refuse optimizers whose steps are not what step hooks can work with."""
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        if kind in _REFUSED:
            raise UsageError(f"attach: {kind} cannot be used, since {_REFUSED[kind]}")


def check_membership(
    model: nn.Module, layers: Mapping[str, Parametrization], optimizers: Sequence[Optimizer]
) -> None:
    """Every factor is in exactly one optimizer; warn about other parameters that are in none."""
    seen: dict[int, int] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                seen[id(p)] = seen.get(id(p), 0) + 1
    for name, layer in layers.items():
        for factor, p in layer.factors().items():
            if seen.get(id(p), 0) != 1:
                where = "no optimizer" if id(p) not in seen else "more than one optimizer"
                raise UsageError(
                    f"attach: factor {factor} of {name} is in {where}; build the optimizer after "
                    "spectrain.apply (and fully_shard), from spectrain.param_groups(model, lr=…)"
                )
    left = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in seen]
    if left:
        _warn(f"{len(left)} trainable parameters are in no optimizer and will not move: ", left)


def check_groups(by_method: Mapping[Method, Sequence[Parametrization]], moments: Moments) -> None:
    """A group shared with other parameters cannot be warmed up for the factors alone."""
    for method, layers in by_method.items():
        factors = [p for layer in layers for p in layer.factors().values()]
        own = {id(p) for p in factors}
        groups = {id(group): group for group in (moments.group(p) for p in factors)}
        mixed = any(id(p) not in own for group in groups.values() for p in group["params"])
        if mixed and any(method.warmup_factor(t) != 1.0 for t in _one_cycle(method, layers)):
            raise UsageError(
                f"attach: {method.title} warms up the rate of its factors after events, but they "
                "share a parameter group with other parameters; build the optimizer from "
                "spectrain.param_groups(model, lr=…)"
            )


def check_gradients(
    layers: Mapping[str, Parametrization],
    trainable: Mapping[str, nn.Parameter],
    moments: Moments,
    has_gradient: Callable[[Tensor], bool],
) -> None:
    """After the first backward pass: every trainable parameter must have had a gradient."""
    resting = {id(p) for layer in layers.values() for p in layer.resting()}
    expected = {n: p for n, p in trainable.items() if id(p) not in resting}
    factors = [p for layer in layers.values() for p in layer.factors().values()]
    if factors and not any(has_gradient(p) for p in factors):
        raise UsageError(
            "no factor received a gradient in the first backward pass. With activation "
            "checkpointing over frozen layers, call model.enable_input_require_grads() or use "
            "use_reentrant=False"
        )
    without = [n for n, p in expected.items() if not has_gradient(p) and p in moments]
    if without:
        _warn(
            f"{len(without)} trainable parameters had no gradient in the first backward pass: ",
            without,
        )


def check_states(by_method: Mapping[Method, Sequence[Parametrization]], moments: Moments) -> None:
    """After the first step: refuse now, not at the first event, state that no event can edit."""
    for method, layers in by_method.items():
        if method.has_schedule:
            for p in layers[0].factors().values():
                moments.require_editable(p, pruned=method.prunes)


def in_gradient_scaler() -> bool:
    """True inside of GradScaler.step: an ordinary optimizer is not told that a scaler steps it."""
    return _called_from("grad_scaler.py", "step")


def only_makes_state(optimizer: Optimizer) -> bool:
    """True in the step at rate zero by which torch.distributed.checkpoint makes an optimizer's state."""
    return not optimizer.state and _called_from("state_dict.py", "_init_optim_state")


def is_inner_step(optimizer: Optimizer) -> bool:
    """True in the step of a parent class that an optimizer's own step calls: both run the hooks."""
    frame, steps = sys._getframe(1), 0
    for _ in range(12):
        own = frame.f_code.co_name == "wrapper" and frame.f_code.co_filename.endswith(
            "optimizer.py"
        )
        steps += own and frame.f_locals.get("self") is optimizer
        if frame.f_back is None:
            break
        frame = frame.f_back
    return steps > 1


def _called_from(file: str, function: str, depth: int = 12) -> bool:
    """True if one of the callers is that function of a file so called."""
    frame = sys._getframe(1)
    for _ in range(depth):
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def _one_cycle(method: Method, layers: Sequence[Parametrization]) -> range:
    periods = [event.period(layers[0]) for event in method.events()]
    return range(2 * max(periods, default=1))


def _warn(text: str, names: Sequence[str]) -> None:
    some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    warnings.warn(text + some, SpectrainWarning, stacklevel=5)
