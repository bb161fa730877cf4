"""Images that need no download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from spectrain.tasks.batch import Examples
from spectrain.tasks.image.images import Images, images_from


def digits() -> Images:
    """The 1,797 handwritten digits that come with scikit-learn, 8 × 8 pixels in 17 shades of grey.

    The test part of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits (1998).
    """
    found = load_digits()
    pixels = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    classes = tuple(str(digit) for digit in range(10))
    return images_from("digits", classes, {"train": Examples(pixels.unsqueeze(1), labels)})
