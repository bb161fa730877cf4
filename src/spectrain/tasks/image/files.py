"""Images from what --data names: which form a folder has."""

from __future__ import annotations

from spectrain.errors import UsageError
from spectrain.tasks.image.builtin import digits
from spectrain.tasks.image.folders import read_class_folders
from spectrain.tasks.image.idx import has_idx, read_idx_folder
from spectrain.tasks.image.images import Images
from spectrain.tasks.reading import user_path

FORMS = "IDX files (train-images-idx3-ubyte and so on) or a folder of images for each class"
ONLY_FOLDERS = "resizes the images of class folders"


def load_images(data: str | None, size: int | None = None) -> Images:
    """The images in the folder `data`, as `read_idx_folder` or `read_class_folders` has them; None: digits.

    size: pixels a side to resize the images of class folders to. Raises UsageError if there is no such
    folder, if it has neither form, or naming what is wrong with it.
    """
    if data is None:
        if size is not None:
            raise UsageError(f"--size {ONLY_FOLDERS}, and there is no --data; leave it out")
        return digits()
    folder = user_path(data)
    if not folder.exists():
        raise UsageError(f"there is no folder {data!r} to read images from")
    if not folder.is_dir():
        raise UsageError(f"{data} is no folder; give one that holds {FORMS}")
    try:
        inside = list(folder.iterdir())
        if has_idx(path.name for path in inside):
            if size is not None:
                raise UsageError(f"--size {ONLY_FOLDERS}, and {data} holds IDX files; leave it out")
            return read_idx_folder(folder)
        if any(path.is_dir() for path in inside):
            return read_class_folders(folder, size)
    except OSError as error:
        raise UsageError(
            f"{error.filename or data} cannot be read: {error.strerror or error}"
        ) from error
    raise UsageError(f"{data} holds no known form of images; give a folder with {FORMS}")
