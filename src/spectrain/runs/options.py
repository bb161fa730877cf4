"""How a run is trained, whatever the task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from spectrain.errors import UsageError
from spectrain.optimizers import Optimizers, Stepping, each, optimizer_maker
from spectrain.settings import check, option


@dataclass(frozen=True)
class RunOptions:
    """Budget, rates, schedule, measuring and saving."""

    steps: int = option(2000, help="optimizer steps", minimum=1)
    lr: float = option(
        1e-3,
        help="learning rate of the matrices: the method's factors, or W at full rank",
        minimum=0.0,
    )
    lr_ordinary: float | None = option(
        None,
        help="learning rate of everything else (embeddings, head, norms); default: as --lr",
        minimum=0.0,
    )
    schedule: str = option(
        "cosine",
        help="learning rate after the warm-up; noam falls with 1/√step (Vaswani et al. 2017)",
        choices=("cosine", "constant", "noam"),
    )
    warmup: float = option(
        0.1, help="linear warm-up, as a share of the steps", minimum=0, maximum=1
    )
    final_lr: float = option(
        0.1, help="where cosine ends, as a share of the learning rate", minimum=0, maximum=1
    )
    optimizer: str = option("AdamW", help="a torch.optim class; fused where torch has it")
    weight_decay: float = option(
        0.0,
        help="weight decay of all matrices: decoupled with AdamW, added to the gradient with Adam",
        minimum=0.0,
    )
    clip: float = option(0.0, help="clip the gradient's norm to this; 0: never", minimum=0.0)
    seed: int = option(0, help="seed of initial weights, data order and every draw", minimum=0)
    targets: str = option(
        "all-linear", help="layers to exchange: all-linear, or a regular expression over names"
    )
    exclude: str = option("lm_head", help="name suffixes to leave dense, separated by commas")
    device: str = option("auto", help="cpu, cuda, mps; auto takes cuda where there is one")
    dtype: str = option(
        "float32", help="arithmetic (weights stay float32)", choices=("float32", "bfloat16")
    )
    compile: bool = option(False, help="torch.compile the model")
    layerwise: bool = option(
        False,
        help="step each layer in the backward pass and free its gradient; --clip then bounds it by layer",
    )
    shard: bool = option(
        False,
        help="with several processes: divide the weights over them (FSDP2), not only the data",
    )
    log_every: int = option(10, help="steps between rows of metrics", minimum=1)
    look_every: int | None = option(
        None,
        help="steps between looks at gradients, updates and drift, and 0 for no instruments at all; "
        "default: a hundredth of --steps, and at least 20",
        minimum=0,
    )
    tensorboard: bool = option(
        False, help="also write what is measured to RUN/tensorboard, for TensorBoard to show"
    )
    eval_every: int = option(200, help="steps between validations; 0: only at the end", minimum=0)
    checkpoint_every: int = option(
        500, help="steps between checkpoints; 0: only at the end", minimum=0
    )
    keep: int = option(2, help="checkpoints to keep", minimum=1)
    keep_best: bool = option(
        False, help="also save and keep the checkpoint with the best validation so far"
    )
    patience: int = option(
        0,
        help="stop when validation has not become better in so many steps, and go back to the best "
        "checkpoint; 0: train to the end",
        minimum=0,
    )

    def __post_init__(self) -> None:
        check(self, "train")
        if self.patience and not self.eval_every:
            raise UsageError("train: patience needs validations: give eval_every a value above 0")
        if self.keep_best and not self.eval_every:
            raise UsageError("train: keep_best needs validations: give eval_every a value above 0")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UsageError(
                "train: tensorboard is not installed; pip install 'spectrain[tensorboard]' brings it"
            )

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint so far is saved."""
        return self.keep_best or self.patience > 0

    @property
    def look_period(self) -> int:
        """Steps between looks; 0: none, and no other instrument."""
        default = max(20, math.ceil(self.steps / 100))
        return default if self.look_every is None else self.look_every

    @property
    def excluded(self) -> list[str]:
        """The name suffixes of `exclude`."""
        return [name.strip() for name in self.exclude.split(",") if name.strip()]

    def rate(self, step: int) -> float:
        """Multiplier of all learning rates in step `step` (from 0)."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "noam":
            return math.sqrt(max(warm, 1) / (step + 1))
        progress = (step - warm) / max(1, self.steps - warm)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Stepping:
        """The optimizer over `groups`; beside it RiemannianAdam for parameters on a manifold.

        Raises UsageError as `optimizer_maker` does.
        """
        make = optimizer_maker(self.optimizer, "--optimizer")
        if not any(hasattr(p, "manifold") for group in groups for p in group["params"]):
            return make(groups)
        from spectrain.hyperbolic import RiemannianAdam, divided

        points, others = divided(groups)
        return Optimizers((*(each(make(others)) if others else ()), RiemannianAdam(points)))

    def find_device(self) -> torch.device:
        """The device to train on. Raises UsageError if it is not there."""
        if self.device == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
            return torch.device(name)
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--device {self.device} cannot be used here: {reason}") from None
        return device
