"""What the training loop asks of a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from spectrain.distributed import Processes
from spectrain.tasks.batch import Batch
from spectrain.tasks.score import Score


@runtime_checkable
class StartsFactors(Protocol):
    """A task that lets a run's factors begin with something of its own, whatever the method's start."""

    def start_factors(self, model: nn.Module) -> None:
        """Called once, before the first step of a run, when the method was applied to `model`."""


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

    def micro_batches(self, step: int, seed: int) -> Sequence[Batch]:
        """The data of optimizer step `step` (from 0), one batch for each backward pass."""

    def blank(self) -> Batch:
        """A batch as large as any of them, without meaning: what memory is planned with."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
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
        """Scores on "validation" or "test" data, by key.

        If `thorough`, every one, on all of the data; else, in training, those that are cheap, on a first
        part of it. The first of them in the order of `scores` tells which checkpoint is the best.
        With `processes` each of them measures a share, and all return the whole's.
        """

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """A fixed small input and the model's output for it, to recognise an exported model by."""

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        """Write what a trained model needs beside its weights (tokenizer, configuration)."""

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        """Files for the run directory that show the trained model to people, by name.

        The report shows the pictures embedding.png and mistakes.png, and samples.json as a table:
        "columns" and "rows" of text. Of several processes each one calls this, as it does `evaluate`.
        """

    def settings(self) -> dict[str, Any]:
        """What the task was asked for, for config.json."""

    def summary(self) -> dict[str, Any]:
        """The data, for config.json; "fingerprint" identifies it."""
