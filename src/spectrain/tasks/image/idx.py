"""Images in IDX files, the form of MNIST (LeCun et al. 1998), Fashion-MNIST and EMNIST."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from spectrain.errors import UsageError
from spectrain.tasks.batch import Examples
from spectrain.tasks.image.images import Images, images_from
from spectrain.tasks.reading import read_bytes

_NAME = re.compile(
    r"(?P<set>emnist-[a-z]+-)?(?P<part>train|test|t10k)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)
_PARTS = {"train": "train", "t10k": "test", "test": "test"}
_DIMENSIONS = {"images": 3, "labels": 1}


def has_idx(names: Iterable[str]) -> bool:
    """Whether one of these is a name of an IDX file of images."""
    return any(_NAME.fullmatch(name) for name in names)


def read_idx_folder(folder: Path) -> Images:
    """The images in the IDX files of `folder`: those to train on and, where they are there, to test on.

    A file may be compressed (.gz). EMNIST's images lie on their side in its files and are turned
    upright. Raises UsageError, naming the file, for what is missing, damaged or does not fit together.
    """
    files: dict[str, dict[tuple[str, str], Path]] = {}  # by data set, then by part and kind
    for path in sorted(folder.iterdir(), reverse=True):  # the uncompressed one of two wins
        if name := _NAME.fullmatch(path.name):
            of = files.setdefault(name["set"] or "", {})
            of[_PARTS[name["part"]], name["kind"]] = path
    if len(files) > 1:
        names = ", ".join(sorted(name.removesuffix("-") or "MNIST's names" for name in files))
        raise UsageError(
            f"{folder} holds IDX files of several data sets ({names}); put those of one in a folder of "
            "their own"
        )
    ((prefix, own),) = files.items()
    examples = {}
    for part in ("train", "test"):
        missing = [kind for kind in _DIMENSIONS if (part, kind) not in own]
        if missing == list(_DIMENSIONS) and part == "test":
            continue
        if missing:
            known_as = "t10k" if part == "test" and not prefix else part
            raise UsageError(
                f"{folder} lacks the file {prefix}{known_as}-{missing[0]}-"
                f"idx{_DIMENSIONS[missing[0]]}-ubyte (it may end in .gz); put it beside the others"
            )
        examples[part] = _examples(own[part, "images"], own[part, "labels"], on_side=bool(prefix))
    labels = examples["train"].targets.bincount(minlength=256).nonzero().flatten()
    for part, found in examples.items():
        examples[part] = Examples(found.inputs, _places(found.targets, labels, own[part, "labels"]))
    classes = tuple(str(label) for label in labels.tolist())
    return images_from(prefix.removesuffix("-") or folder.resolve().name, classes, examples)


def _places(targets: Tensor, labels: Tensor, path: Path) -> Tensor:
    """Each target's place among the sorted labels, of which EMNIST's letters have no 0."""
    places = torch.searchsorted(labels, targets).clamp(max=len(labels) - 1)
    strange = targets[labels[places] != targets]
    if len(strange):
        raise UsageError(
            f"{path} has the label {int(strange[0])}, which no image to train on has; check that the files "
            "are of one data set"
        )
    return places


def _examples(images: Path, labels: Path, *, on_side: bool) -> Examples:
    pixels, targets = read_idx(images, 3), read_idx(labels, 1).long()
    if len(pixels) != len(targets):
        raise UsageError(
            f"{images} has {len(pixels):,} images, and {labels.name} {len(targets):,} labels; check that "
            "both are of one data set"
        )
    return Examples((pixels.mT if on_side else pixels).unsqueeze(1).contiguous(), targets)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes in an IDX file as a tensor, uint8, of so many dimensions.

    The form: 0, 0, 8 (unsigned bytes), the number of dimensions; each size as four bytes, the highest
    first; then the bytes. Raises UsageError if the file is another one, damaged or empty.
    """
    raw = read_bytes(path)
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise UsageError(
            f"{path} is no IDX file of bytes in {dimensions} dimension{'s' * (dimensions > 1)} (its "
            f"beginning is {raw[:4].hex() or 'missing'}): fetch it again, or check its name"
        )
    sizes = struct.unpack(f">{dimensions}I", raw[4:start])
    if math.prod(sizes) != len(raw) - start:
        raise UsageError(
            f"{path} is damaged: by its header {' × '.join(map(str, sizes))} bytes follow, and there are "
            f"{len(raw) - start:,}; fetch it again"
        )
    if not math.prod(sizes):
        raise UsageError(f"{path} is empty (by its header {sizes}): fetch it again")
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).reshape(sizes)
