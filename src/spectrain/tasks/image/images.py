"""Images with their classes: checked, and divided into training, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.tasks.batch import Examples

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Images:
    """Labelled images of one shape."""

    name: str
    classes: tuple[str, ...]  # their names; a label is a place among them
    parts: Mapping[str, Examples]  # by split: pixels (N, C, H, W), uint8, and labels (N,), int64
    notes: tuple[str, ...] = ()  # for people, on what was left out

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels (1: grey, 3: RGB), height and width of an image."""
        _, channels, height, width = self.parts["train"].inputs.shape
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every pixel, label and class."""
        found = hashlib.sha256(repr((self.classes, self.shape)).encode())
        for split, part in sorted(self.parts.items()):
            found.update(f"{split} {len(part.targets)}".encode())
            found.update(part.inputs.numpy().tobytes())
            found.update(part.targets.numpy().tobytes())
        return found.hexdigest()

    def summary(self) -> dict[str, Any]:
        """For config.json."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "classes": list(self.classes),
            **{split: len(part.targets) for split, part in self.parts.items()},
            "fingerprint": self.fingerprint,
        }


def images_from(
    name: str,
    classes: tuple[str, ...],
    parts: Mapping[str, Examples],
    notes: tuple[str, ...] = (),
) -> Images:
    """Images, if they have one shape and two classes or more. Raises UsageError if not."""
    if len(classes) < 2:
        raise UsageError(
            f"{name} has images of one class, {classes[0]!r}, so there is nothing to tell apart; give "
            "data with two classes or more"
        )
    shapes = {split: tuple(part.inputs.shape[1:]) for split, part in parts.items()}
    for split, shape in shapes.items():
        if shape != shapes["train"]:
            raise UsageError(
                f"{name}: images of {split} are {in_words(shape)}, and those to train on "
                f"{in_words(shapes['train'])}; all must have one size"
            )
    return Images(name, classes, parts, notes)


def in_words(shape: tuple[int, ...]) -> str:
    """A shape (C, H, W) for people: "28 × 28 grey"."""
    channels, height, width = shape
    return f"{height} × {width} {'grey' if channels == 1 else 'RGB'}"


def divided(images: Images, validation: float, test: float, seed: int) -> Images:
    """The same with a validation and a test part, taken from the training images where there is none.

    validation, test: the shares of each class that go there, rounded to whole images. Raises
    UsageError where a part would be empty.
    """
    shares = {"validation": validation, "test": test}
    wanted = {split: share for split, share in shares.items() if split not in images.parts}
    if sum(wanted.values()) >= 1:
        raise UsageError(
            f"train image: with validation {validation} and test {test} nothing is left to train on; "
            "together they must be below 1"
        )
    train = images.parts["train"]
    order = np.random.default_rng(seed).permutation(len(train.targets))
    labels = train.targets.numpy()[order]
    rows: dict[str, list[np.ndarray[Any, Any]]] = {split: [] for split in ("train", *wanted)}
    for label in range(len(images.classes)):
        own, begin = order[labels == label], 0
        for split, share in wanted.items():
            end = begin + round(share * len(own))
            rows[split].append(own[begin:end])
            begin = end
        rows["train"].append(own[begin:])
    parts = dict(images.parts)
    for split, found in rows.items():
        kept = torch.from_numpy(np.sort(np.concatenate(found)))
        if not len(kept):
            raise UsageError(
                f"{images.name} has too few images of each class to divide them: none is left for "
                f"{split}; give larger shares or more images"
            )
        parts[split] = Examples(train.inputs[kept], train.targets[kept])
    ordered = {split: parts[split] for split in SPLITS}
    return Images(images.name, images.classes, ordered, images.notes)


def mean_and_deviation(
    pixels: Tensor,  # (N, C, H, W), uint8
) -> tuple[Tensor, Tensor]:  # (C,) each, of pixels scaled to [0, 1]; a deviation of 0 is given as 1
    """Over all pixels of a channel; exact, whatever the order they are summed in."""
    sums = torch.zeros(2, pixels.shape[1], dtype=torch.float64)
    for chunk in torch.split(pixels, 1024):  # whole numbers below 2⁵³
        values = chunk.double()
        sums += torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3))))
    mean, square = sums / (pixels.numel() // pixels.shape[1])
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    deviation[deviation == 0] = 255
    return (mean / 255).float(), (deviation / 255).float()
