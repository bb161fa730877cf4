"""Images in a folder for each class, read with Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from spectrain.errors import UsageError
from spectrain.tasks.batch import Examples
from spectrain.tasks.image.images import Images, images_from

Array = np.ndarray[Any, Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
PARTS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
GREY = ("1", "L", "LA", "La")
DEEP = ("I", "F")  # how the names of modes of more than 8 bits begin
MOST_BYTES = 2**33  # of all pixels together; more is a mistake, or asks for --size


def read_class_folders(folder: Path, size: int | None) -> Images:
    """The images in `folder`/train/<class>/, validation/ and test/ where there are, or <class>/.

    size: pixels a side that images are resized to; None: all must have one size. Labels follow the
    sorted names of the classes. If one image has colours, all get three channels; transparency is
    dropped. Raises UsageError, naming folder or file, for what cannot be read or does not fit.
    """
    inside = _folders(folder)
    if any(path.name == "train" for path in inside):
        places: dict[str, Path] = {}
        for path in inside:
            if part := PARTS.get(path.name):
                if part in places:
                    raise UsageError(
                        f"{folder} has {places[part].name} and {path.name}, both for {part}; keep one"
                    )
                places[part] = path
    else:
        places = {"train": folder}
    classes = tuple(path.name for path in _folders(places["train"]))
    if not classes:
        raise UsageError(
            f"{places['train']} holds no folders; put the images of each class in a folder of its name"
        )
    files = [
        (part, classes.index(path.name), file)
        for part, place in places.items()
        for path in _folders(place)
        for file in _files(path, classes)
    ]
    pixels = _pixels([file for _, _, file in files], size)
    labels = torch.tensor([label for _, label, _ in files])
    parts = {}
    for part in places:
        own = torch.tensor([name == part for name, _, _ in files])
        if not own.any():
            raise UsageError(f"{places[part]} holds no images; put some there or delete the folder")
        parts[part] = Examples(pixels[own], labels[own])
    unused = [path.name for path in inside if places["train"] != folder and path.name not in PARTS]
    notes = (f"left out, since of no known name: {', '.join(unused[:5])}",) if unused else ()
    return images_from(folder.resolve().name, classes, parts, notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path, classes: Sequence[str]) -> list[Path]:
    """The images of a class. Raises UsageError if there are none, or none to train on have its name."""
    if folder.name not in classes:
        raise UsageError(
            f"{folder} is of a class that has no folder to train on; those are "
            f"{', '.join(classes[:5])}{' …' * (len(classes) > 5)}"
        )
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UsageError(
            f"{folder} holds no images ({', '.join(SUFFIXES[:3])} …); put some there or delete the folder"
        )
    return files


def _pixels(files: Sequence[Path], size: int | None) -> torch.Tensor:
    """(N, C, H, W) uint8, with one channel if no image has colours."""
    found: list[Array] = []
    for path in files:
        array = _read(path, size)
        if found and array.shape[:2] != found[0].shape[:2]:
            first, own = (f"{a.shape[0]} × {a.shape[1]}" for a in (found[0], array))
            raise UsageError(
                f"{path} is {own} pixels, and {files[0]} is {first}; all must have one size: give "
                "--size, and they are resized"
            )
        if array.nbytes * len(files) > MOST_BYTES:
            raise UsageError(
                f"the {len(files):,} images of {array.shape[0]} × {array.shape[1]} pixels would take "
                f"{array.nbytes * len(files) / 2**30:.0f} GiB; give a smaller --size"
            )
        found.append(array)
    channels = max(array.shape[2] for array in found)
    stacked = np.stack([np.broadcast_to(array, (*array.shape[:2], channels)) for array in found])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _read(path: Path, size: int | None) -> Array:
    """(H, W, 1) or (H, W, 3), uint8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                mode = file.mode
                # Photos say beside the pixels how they were held.
                upright = ImageOps.exif_transpose(file)
                image = upright.convert("L" if mode in GREY else "RGB")
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
    except Exception as error:
        # Pillow raises nearly anything at what is damaged: SyntaxError, struct.error, ValueError …
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{path} cannot be read as an image ({reason}): replace or delete it"
        ) from error
    if mode.startswith(DEEP):
        raise UsageError(f"{path} has more than 8 bits a pixel (mode {mode}); convert it to 8 bits")
    array = np.array(image)
    return array.reshape(*array.shape[:2], -1)
