"""The arms of the comparison: each a model, its optimizer and what happens at its events."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import speed_counts as counts
import three_product_sst
import torch
from torch import nn

import spectrain
from spectrain.moments import Moments
from spectrain.surgery import parametrized

RATE = 1e-4  # small, so that the weights stay what they were while they are timed
EVERY = 200  # the period of resampling, merging and refreshing


@dataclass
class TimedEvent:
    """One kind of event; `run` does it for all layers that share the period."""

    name: str
    period: int
    run: Callable[[], None]


@dataclass
class Arm:
    """A model ready to train. A step is forward, backward, `update`."""

    title: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    rank: int | None
    operations: float  # of one step, on average
    update: Callable[[], object]  # the optimizer's step and all that belongs to it
    events: list[TimedEvent] = field(default_factory=list)
    cycle: int = 1  # steps that differ from each other: a sample is needed of each
    refreshing: Arm | None = None  # the same, but every step refreshes the basis
    refresh_every: int = EVERY

    @property
    def trained(self) -> int:
        """Numbers that the optimizer steps."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Recipe:
    """How an arm is made from a fresh model: `rank` is r, `divisor` the d/r where none is given."""

    title: str
    build: Callable[[nn.Module, int], Arm]
    count: counts.Count
    divisor: int | None = 8

    def rank_at(self, width: int) -> int | None:
        return width // self.divisor if self.divisor else None


def make(
    recipe: Recipe,
    fresh: nn.Module,
    matrices: list[tuple[int, int]],
    tokens: int,
    width: int,
    rank: int | None = None,
) -> Arm:
    """An arm on a copy of `fresh`; `matrices` are the shapes of its linear layers."""
    r = (rank or recipe.rank_at(width)) if recipe.divisor else None
    torch.manual_seed(0)
    arm = recipe.build(copy.deepcopy(fresh), r or 0)
    arm.title, arm.rank = recipe.title, r
    arm.operations = counts.total(recipe.count, matrices, tokens, r or 0)
    return arm


def adamw(params: Iterable[nn.Parameter] | list[dict]) -> torch.optim.AdamW:
    """The optimizer of every arm that uses torch's."""
    return torch.optim.AdamW(params, lr=RATE, weight_decay=0.0, fused=True)


def _arm(model: nn.Module, optimizer: torch.optim.Optimizer, **more: object) -> Arm:
    more.setdefault("update", optimizer.step)
    return Arm("", model, optimizer, None, 0.0, **more)  # type: ignore[arg-type]


def _full(model: nn.Module, rank: int) -> Arm:
    return _arm(model, adamw(model.parameters()))


def _spectrain(
    method: Callable[..., spectrain.method.Method], *, cycle: int = 1, **settings: object
) -> Callable[[nn.Module, int], Arm]:
    def build(model: nn.Module, rank: int) -> Arm:
        spectrain.apply(model, method(rank, **settings), report=None)
        optimizer = adamw(spectrain.param_groups(model, RATE))
        spectrain.attach(model, optimizer)
        return _arm(model, optimizer, cycle=cycle, events=_events(model, optimizer))

    return build


def _events(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[TimedEvent]:
    """The method's events, each for the layers that share its period."""
    layers = [layer for _, layer in parametrized(model)]
    moments = Moments([optimizer])
    made = []
    for event in layers[0].method.events():
        for period in sorted({event.period(layer) for layer in layers}):
            due = [layer for layer in layers if event.period(layer) == period]

            def run(event=event, due=due, period=period) -> None:
                event.action(due, moments, period)

            made.append(TimedEvent(event.name, period, run))
    return made


def _galore(model: nn.Module, rank: int) -> Arm:
    other = copy.deepcopy(model)
    arm = _spectrain(spectrain.GaLore, refresh_every=EVERY)(model, rank)
    arm.refreshing = _spectrain(spectrain.GaLore, refresh_every=1)(other, rank)
    return arm


def _three_products(model: nn.Module, rank: int) -> Arm:
    layers = three_product_sst.exchange(model, rank)
    optimizer = adamw(p for p in model.parameters() if p.requires_grad)
    return _arm(
        model, optimizer, update=lambda: three_product_sst.optimizer_step(optimizer, layers)
    )


def _peft_lora(model: nn.Module, rank: int) -> Arm:
    import peft

    names = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(names - {"lm_head"}))
    others = [p for p in model.parameters() if p.ndim < 2]
    peft.inject_adapter_in_model(config, model)
    for p in others:  # norms and biases train in every arm
        p.requires_grad_(True)
    return _arm(model, adamw(p for p in model.parameters() if p.requires_grad))


def _low_rank_optimizer(
    optimizer: Callable[[list[dict]], torch.optim.Optimizer], **settings: object
) -> Callable[[nn.Module, int], Arm]:
    """galore-torch's and apollo-torch's shared form: groups that say their rank."""

    def build_with(gap: int, model: nn.Module, rank: int) -> Arm:
        inner = [
            m.weight
            for n, m in model.named_modules()
            if isinstance(m, nn.Linear) and not n.endswith("lm_head")
        ]
        known = {id(p) for p in inner}
        others = [p for p in model.parameters() if id(p) not in known]
        group = {"params": inner, "rank": rank, "update_proj_gap": gap, **settings}
        return _arm(model, optimizer([{"params": others}, group]))

    def build(model: nn.Module, rank: int) -> Arm:
        other = copy.deepcopy(model)
        arm = build_with(EVERY, model, rank)
        arm.refreshing = build_with(1, other, rank)
        return arm

    return build


def _galore_torch(groups: list[dict]) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW

    return GaLoreAdamW(groups, lr=RATE, no_deprecation_warning=True)


def _apollo_torch(groups: list[dict]) -> torch.optim.Optimizer:
    from apollo_torch import APOLLOAdamW

    return APOLLOAdamW(groups, lr=RATE)


RECIPES = {
    "full": Recipe("full rank, AdamW", _full, counts.full, divisor=None),
    "sst": Recipe("SST", _spectrain(spectrain.SST), counts.sst),
    "recompute": Recipe(
        "SST, recompute", _spectrain(spectrain.SST, recompute=True), counts.sst_recompute
    ),
    "frozen4": Recipe(
        "SST, frozen_s_every=4",
        _spectrain(spectrain.SST, frozen_s_every=4, cycle=4),
        counts.sst_frozen_s_every(4),
    ),
    "residual": Recipe("SST, residual", _spectrain(spectrain.SST, residual=True), counts.residual),
    "lora": Recipe("LoRA", _spectrain(spectrain.LoRA), counts.lora),
    "relora": Recipe("ReLoRA*", _spectrain(spectrain.ReLoRA), counts.lora),
    "galore": Recipe("GaLore", _galore, counts.galore, divisor=4),
    "plain": Recipe("plain three-product SST", _three_products, counts.three_products),
    "peft": Recipe("peft LoRA", _peft_lora, counts.peft_lora),
    "galore-torch": Recipe(
        "galore-torch",
        _low_rank_optimizer(_galore_torch, scale=0.25, proj_type="std"),
        counts.galore_torch,
        divisor=4,
    ),
    "apollo-torch": Recipe(
        "apollo-torch",
        _low_rank_optimizer(
            _apollo_torch, scale=1.0, proj_type="std", proj="random", scale_type="channel"
        ),
        counts.apollo_torch,
        divisor=4,
    ),
}
