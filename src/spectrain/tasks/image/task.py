"""Telling classes of images apart."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.distributed import Processes
from spectrain.errors import UsageError
from spectrain.tasks.batch import Examples
from spectrain.tasks.image.files import load_images
from spectrain.tasks.image.images import Images, divided, in_words, mean_and_deviation
from spectrain.tasks.image.models import ImageNetwork, build
from spectrain.tasks.image.options import ImageOptions
from spectrain.tasks.image.predictions import logits_of, measured
from spectrain.tasks.order import EpochOrder
from spectrain.tasks.score import Score

PROBE = 16  # images

ACCURACY = Score("accuracy", "accuracy", "points", True, 100.0, 2)


@dataclass
class ImageClassification:
    """The task `image`: cross-entropy on batches of images in random order."""

    options: ImageOptions
    images: Images  # with all three parts
    name: str = "image"
    unit: str = "images"
    scores: tuple[Score, ...] = (ACCURACY,)

    @classmethod
    def load(cls, options: ImageOptions) -> ImageClassification:
        """Learn what `options.data` names. Raises UsageError as `load_images` and `on` do."""
        return cls.on(load_images(options.data, options.size), options)

    @classmethod
    def on(cls, images: Images, options: ImageOptions) -> ImageClassification:
        """Learn `images`, divided as `options` say. Raises UsageError where that cannot be."""
        o = options
        task = cls(o, divided(images, o.validation, o.test, o.split_seed))
        if task.units_per_step > len(task._train.targets):
            raise UsageError(
                f"a step takes {task.units_per_step:,} images (--batch-size × --accumulate), and there are "
                f"{len(task._train.targets):,} to train on; give a smaller --batch-size"
            )
        task.skeleton()  # refuse now what cannot be built
        return task

    @property
    def _train(self) -> Examples:
        return self.images.parts["train"]

    @property
    def units_per_step(self) -> int:
        return self.options.batch_size * self.options.accumulate

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every image is seen once; seldom a whole number."""
        return len(self._train.targets) / self.units_per_step

    @property
    def batch_shape(self) -> tuple[int, int, int]:
        return self.options.accumulate, self.options.batch_size, 1

    @property
    def is_divisible(self) -> bool:
        return True

    # --- model ---------------------------------------------------------------------------------

    def _description(self) -> dict[str, Any]:
        """The network in JSON: what `models.build` makes it of."""
        o = self.options
        description: dict[str, Any] = {
            "architecture": o.model,
            "shape": list(self.images.shape),
            "classes": list(self.images.classes),
            "dropout": o.dropout,
        }
        if o.model == "mlp":
            return {**description, "hidden": o.hidden_sizes}
        sizes = {"patch_size": o.patch_size, "dim": o.dim, "layers": o.layers, "heads": o.heads}
        return description | sizes

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        return mean_and_deviation(self._train.inputs)

    def build_model(self) -> ImageNetwork:
        model = build(self._description())
        with torch.no_grad():
            for buffer, known in zip((model.mean, model.deviation), self._scale, strict=True):
                buffer.copy_(known[:, None, None])
        return model

    def skeleton(self) -> ImageNetwork:
        with torch.device("meta"):
            return build(self._description())

    # --- training ------------------------------------------------------------------------------

    @cached_property
    def _orders(self) -> dict[int, EpochOrder]:
        return {}

    def micro_batches(self, step: int, seed: int) -> list[Examples]:
        """Pixels (B, C, H, W), uint8, with labels (B,); each epoch shuffles the images anew."""
        if seed not in self._orders:
            self._orders[seed] = EpochOrder(len(self._train.targets), seed)
        rows = self._orders[seed].rows(step * self.units_per_step, self.units_per_step)
        parts = torch.split(rows, self.options.batch_size)
        return [Examples(self._train.inputs[own], self._train.targets[own]) for own in parts]

    def blank(self) -> Examples:
        size = self.options.batch_size
        pixels = torch.zeros(size, *self.images.shape, dtype=torch.uint8)
        return Examples(pixels, torch.zeros(size, dtype=torch.int64))

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        logits = model(batch.inputs).float()
        return F.cross_entropy(logits, batch.targets, label_smoothing=self.options.label_smoothing)

    # --- measuring -----------------------------------------------------------------------------

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        *,
        thorough: bool,
        dtype: torch.dtype,
        processes: Processes | None = None,
    ) -> dict[str, float]:
        """The share of right answers, "accuracy", and the mean cross-entropy in nats, "loss".

        Always on all images, and without label smoothing.
        """
        return measured(model, self.images.parts[split], dtype, processes)

    def probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        pixels = self.images.parts["validation"].inputs[:PROBE].clone()
        return pixels, logits_of(model, pixels)

    # --- what is written -----------------------------------------------------------------------

    def save_assets(self, model: nn.Module, directory: Path) -> None:
        folder = directory / "model"
        folder.mkdir(exist_ok=True)
        text = json.dumps(self._description(), indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")

    def exhibits(self, model: nn.Module) -> dict[str, bytes]:
        from spectrain.tasks.image.picture import mistakes

        test = self.images.parts["test"]
        probabilities = logits_of(model, test.inputs).softmax(1)
        found = mistakes(test.inputs, test.targets, probabilities, self.images.classes)
        return {} if found is None else {"mistakes.png": found}

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def describe(self) -> str:
        """The images and their division in a sentence."""
        images = self.images
        what = f"{in_words(images.shape)} pixels, {len(images.classes)} classes"
        parts = ", ".join(f"{split} {len(part.targets):,}" for split, part in images.parts.items())
        return f"{images.name}: {what}; {parts} images"

    def summary(self) -> dict[str, Any]:
        return self.images.summary()
