"""What the training loop asks of a task."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectrain.distributed import Processes
from spectrain.tasks.score import Score


class Task(Protocol):
    """Something to train: a model, data in a fixed order, a loss and a measure on held-out data.

    Everything drawn at random follows from the seed given, so that every method of a comparison
    sees the same initial weights and the same batches in the same order.
    """

    name: str  # of the command: "lm"

    @property
    def scores(self) -> tuple[Score, ...]:
        """What results are judged by; the first decides."""

    unit: str  # what a step's work is counted in: "tokens"

    @property
    def units_per_step(self) -> int:
        """How many of them one optimizer step takes."""

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        """Of one optimizer step: backward passes, sequences in each, tokens predicted in each of them."""

    @property
    def is_divisible(self) -> bool:
        """Whether the rows of a batch can be divided over processes."""

    def build_model(self) -> nn.Module:
        """A new model, initialised from torch's global random numbers."""

    def skeleton(self) -> nn.Module:
        """Such a model to look at, if possible without numbers; random numbers are as before."""

    def micro_batches(self, step: int, seed: int) -> list[Tensor]:
        """The data of optimizer step `step` (from 0), one tensor for each backward pass."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar with a graph."""

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        thorough: bool,
        dtype: torch.dtype,
        processes: Processes | None = None,
    ) -> dict[str, float]:
        """Every score on "validation" or "test" data, by key; all of it if `thorough`, else a first part.

        With `processes` each of them measures a share, and all return the whole's.
        """

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """A fixed small input and the model's output for it, to recognise an exported model by."""

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        """Write what a trained model needs beside its weights (tokenizer, configuration)."""

    def picture(self, model: nn.Module) -> bytes | None:
        """A PNG that shows the trained model to people, if there is something to see."""

    def settings(self) -> dict[str, Any]:
        """What the task was asked for, for config.json."""

    def summary(self) -> dict[str, Any]:
        """The data, for config.json; "fingerprint" identifies it."""
