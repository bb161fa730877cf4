"""A training step rehearsed without data: the real code on fake tensors, under the tracker."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from spectrain.attachment import attach, detach
from spectrain.errors import SpectrainError, SpectrainWarning, UsageError
from spectrain.groups import param_groups
from spectrain.layerwise import LayerWise
from spectrain.memory.checkpointing import checkpoint_blocks
from spectrain.memory.clocks import busiest, cycle, fullest, special
from spectrain.memory.fake import emptied, without_data
from spectrain.memory.live import FROZEN, GRADIENTS, OPTIMIZER, WEIGHTS
from spectrain.memory.segments import Profile, Segments, extrapolate
from spectrain.method import Method
from spectrain.optimizers import MakeOptimizer, optimizer_maker
from spectrain.surgery import Targets, apply, parametrized

LOGITS = "logits"  # arrays with a number for each word of the vocabulary: logits, their gradient …
STEP = "step"  # prefix of an ordinary step's segments; an event's is its name
FEW, MORE = 3, 4  # blocks that are rehearsed where the model has more

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Setting:
    """How a step is taken: all that its memory depends on beside model and method."""

    batch_size: int  # sequences of one backward pass
    sequence_length: int
    dtype: torch.dtype = torch.float32  # of autocast; float32 is without it
    accumulate: int = 1  # backward passes of one optimizer step
    gradient_checkpointing: bool = False
    layerwise: bool = False  # layers stepped in the backward pass
    loss: Loss | None = None  # of (model, batch); default: next-token cross-entropy
    batch: Callable[[], Any] | None = None  # of one backward pass; default: ids (batch_size, T + 1)
    targets: Targets = "all-linear"
    exclude: Sequence[str] = ("lm_head",)


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsed step found."""

    sizes: dict[str, int]  # weights, frozen, gradients, optimizer: bytes of each when complete
    profile: Profile  # segment -> bytes by category at its peak
    largest_rank: int  # min(m, n) of the smallest layer


def rehearse(
    model: nn.Module | Callable[[], nn.Module],
    method: Method,
    setting: Setting,
    optimizer: str | type[Optimizer] | MakeOptimizer,
) -> Rehearsal:
    """Apply the method, take an ordinary step and one step for each of the method's events.

    A model with more than `MORE` equal blocks is rehearsed with `FEW` and with `MORE` of them, and
    everything is extrapolated: all sizes, and the peak of each segment, are affine in the number of
    equal blocks. Nothing of the model's size is allocated, and the model stays as it is.
    """
    with without_data() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore", SpectrainWarning)
        whole = model if isinstance(model, nn.Module) else model()
        count = len(repeated_blocks(whole))
        make = optimizer_maker(optimizer)
        if count <= MORE:
            return _Stage(emptied(whole, mode), method, setting, make).run()
        few, more = (
            _Stage(_shortened(whole, mode, n), method, setting, make).run() for n in (FEW, MORE)
        )
        blocks = FEW, MORE
        sizes = extrapolate({"": few.sizes}, {"": more.sizes}, blocks, count)[""]
        profile = extrapolate(few.profile, more.profile, blocks, count)
        return Rehearsal(sizes, profile, more.largest_rank)


def repeated_blocks(model: nn.Module) -> nn.ModuleList:
    """The longest list of blocks of the same shapes in `model`; an empty one if there is none."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and _all_equal(m)]
    return max(lists, key=len, default=nn.ModuleList())


def _all_equal(blocks: nn.ModuleList) -> bool:
    kinds = {
        (type(b), tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in b.named_parameters()))
        for b in blocks
    }
    return len(kinds) == 1


def _shortened(model: nn.Module, mode: Any, count: int) -> nn.Module:
    """An empty copy with only the first `count` of its repeated blocks."""
    blocks = repeated_blocks(model)
    rest = list(blocks)[count:]
    del blocks[count:]
    try:
        return emptied(model, mode)
    finally:
        blocks.extend(rest)


class _Stage:
    """One model without data, its optimizer and the tracker."""

    def __init__(
        self, model: nn.Module, method: Method, setting: Setting, make: MakeOptimizer
    ) -> None:
        self.model, self.method, self.setting = model.train(), method, setting
        if setting.gradient_checkpointing:
            checkpoint_blocks(model)
        apply(model, method, setting.targets, setting.exclude, report=None)
        groups = param_groups(model, 1e-3)
        self.optimizer = make(groups)
        blocks = repeated_blocks(model)
        self.live = Segments(blocks, model=model, optimizer=self.optimizer, classify=_logits(model))
        self.layers = [layer for _, layer in parametrized(model)]
        self.sizes = dict.fromkeys((WEIGHTS, FROZEN, GRADIENTS, OPTIMIZER), 0)

    def run(self) -> Rehearsal:
        with self.live:
            self._step(0, "start")  # in which the optimizer makes its state
            start = cycle(self.method, self.layers)
            self._step(start + 1, STEP)
            for name, period in special(self.method, self.layers).items():
                self._step(fullest(self.method, self.layers, start, period), name)
            together: dict[int, list[str]] = {}
            for event in self.method.events():
                clock = busiest(event, self.layers, start)
                together.setdefault(clock, []).append(event.name)
            for clock, names in together.items():
                self._step(clock - 1, ", ".join(names))
        kept = {k: v for k, v in self.live.profile.items() if not k.startswith("start/")}
        return Rehearsal(self.sizes, kept, min(layer.size for layer in self.layers))

    def _step(self, clock: int, name: str) -> None:
        """The optimizer step that begins at `clock`, accumulating over at most two passes.

        From the second pass on gradients stand already, so a third is like it.
        """
        s, live = self.setting, self.live
        try:
            self._set_clock(clock)
            live.resolve()
            passes = min(s.accumulate, 2)
            batches = [(s.batch or self._ids)() for _ in range(s.accumulate)]
            live.begin(name)
            for part in batches[:passes]:
                live.forward()
                with torch.autocast("cpu", dtype=s.dtype, enabled=s.dtype != torch.float32):
                    loss = (s.loss or next_token_loss)(self.model, part) / s.accumulate
                live.backward()
                loss.backward()  # type: ignore[no-untyped-call]
            live.update()
            live.resolve()
            for category in self.sizes:
                self.sizes[category] = max(self.sizes[category], live.by_category[category])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            live.end()
        except SpectrainError:
            raise
        except Exception as error:  # any model, optimizer or loss may do anything
            raise UsageError(
                f"plan: a step of {type(self.optimizer).__name__} on {type(self.model).__name__} "
                f"cannot be taken without data, so it cannot be planned ({_one_line(error)})"
            ) from error

    def _ids(self) -> Tensor:
        s = self.setting
        return torch.zeros(s.batch_size, s.sequence_length + 1, dtype=torch.int64)

    def _set_clock(self, clock: int) -> None:
        if self.layers[0].attached:
            detach(self.model)
        for layer in self.layers:
            layer.clock = torch.tensor(clock)  # of known value, also without data
        passes = min(self.setting.accumulate, 2)
        layerwise = LayerWise(passes) if self.setting.layerwise else None
        attach(self.model, self.optimizer, layerwise=layerwise)


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy in float32 of predicting ids (batch, T + 1) by `model(input_ids=…).logits`."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _logits(model: nn.Module) -> Callable[[Tensor], str | None]:
    """Recognise arrays with a number for each word of the vocabulary, the widest there are."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    words = getattr(head, "out_features", None) or getattr(head, "num_embeddings", 0)
    if not words or any(p.shape[-1] == words for p in model.parameters() if p.ndim > 1):
        return lambda tensor: None
    return lambda tensor: LOGITS if tensor.ndim > 1 and tensor.shape[-1] == words else None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
