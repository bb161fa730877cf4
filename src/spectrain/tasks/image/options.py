"""What is trained on what: the settings of the image task."""

from __future__ import annotations

from dataclasses import dataclass

from spectrain.errors import UsageError
from spectrain.settings import check, option

MOST_LAYERS = 100  # hidden layers of an MLP; more is a mistake
WIDEST = 2**20  # and units of one


@dataclass(frozen=True)
class ImageOptions:
    """What is trained on what."""

    data: str | None = option(
        None,
        help="a folder of IDX files, as of MNIST, Fashion-MNIST or EMNIST, or with a folder of images for "
        "each class, which may stand in train/, validation/ and test/; default: scikit-learn's digits",
    )
    size: int | None = option(
        None,
        help="resize the images of class folders to so many pixels a side",
        minimum=1,
        maximum=4096,
    )
    validation: float = option(
        0.1,
        help="share of each class's training images for validation, where data have none of their own",
        above=0.0,
        below=1.0,
    )
    test: float = option(0.2, help="the same for test", above=0.0, below=1.0)
    split_seed: int = option(1234, help="seed of that division, the same for all --seed", minimum=0)
    model: str = option(
        "mlp", help="a multi-layer perceptron, or a vision transformer", choices=("mlp", "vit")
    )
    hidden: str = option(
        "512,512,512", help="of the MLP: units of each hidden layer, separated by commas"
    )
    patch_size: int = option(4, help="of the ViT: pixels of a patch's side", minimum=1)
    dim: int = option(64, help="of the ViT: numbers in a patch's representation", minimum=1)
    layers: int = option(4, help="of the ViT: transformer blocks", minimum=1)
    heads: int = option(4, help="of the ViT: attention heads in each block", minimum=1)
    dropout: float = option(
        0.0, help="behind hidden layers; in the ViT behind every branch", minimum=0.0, below=1.0
    )
    label_smoothing: float = option(
        0.0, help="share of each target that is spread over all classes", minimum=0.0, below=1.0
    )
    batch_size: int = option(64, help="images in one backward pass", minimum=1)
    accumulate: int = option(1, help="backward passes for one optimizer step", minimum=1)

    def __post_init__(self) -> None:
        check(self, "train image")
        if self.dim % self.heads:
            raise UsageError(
                f"train image: dim {self.dim} cannot be divided over {self.heads} heads; give a multiple"
            )
        _ = self.hidden_sizes

    @property
    def hidden_sizes(self) -> list[int]:
        """The numbers of `hidden`. Raises UsageError if they are none."""
        try:
            sizes = [int(word) for word in self.hidden.split(",")]
        except ValueError:
            sizes = []
        if not 0 < len(sizes) <= MOST_LAYERS or not all(0 < size <= WIDEST for size in sizes):
            raise UsageError(
                f"train image: hidden is {self.hidden[:200]!r}; give whole numbers above 0 separated by "
                "commas, as 512,512"
            )
        return sizes
