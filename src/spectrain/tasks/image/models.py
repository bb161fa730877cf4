"""Networks that tell what an image shows: a multi-layer perceptron and a small vision transformer.

All dense maps are plain `nn.Linear`, so that `spectrain.apply` finds them; the one that gives the logits
is called `head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.errors import UsageError

FEED_FORWARD = 4  # hidden units of a block's feed-forward part, over its width


class ImageNetwork(nn.Module):
    """Logits of classes from pixels, which it standardises itself."""

    mean: Tensor  # (C, 1, 1), of the training images' pixels scaled to [0, 1]
    deviation: Tensor
    head: nn.Linear

    def __init__(self, shape: Sequence[int], classes: Sequence[str]) -> None:
        """shape: channels, height, width. classes: their names, in the order of the logits."""
        super().__init__()
        self.shape, self.classes = tuple(shape), tuple(classes)
        self.register_buffer("mean", torch.zeros(self.shape[0], 1, 1))
        self.register_buffer("deviation", torch.ones(self.shape[0], 1, 1))

    def forward(
        self,
        pixels: Tensor,  # (B, C, H, W), from 0 to 255
    ) -> Tensor:  # (B, classes)
        found: Tensor = self.head(self.encode((pixels / 255 - self.mean) / self.deviation))
        return found

    def encode(self, x: Tensor) -> Tensor:
        """(B, width) what the head is given, from standardised pixels."""
        raise NotImplementedError


class Perceptron(ImageNetwork):
    """Linear maps with ReLU between them, on all pixels in a row."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: Sequence[str],
        *,
        hidden: Sequence[int],  # units of each hidden layer
        dropout: float = 0.0,  # behind each of them
    ) -> None:
        super().__init__(shape, classes)
        self.dropout = dropout
        channels, height, width = self.shape
        ins = [channels * height * width, *hidden[:-1]]
        self.layers = nn.ModuleList(map(nn.Linear, ins, hidden))
        self.head = nn.Linear(hidden[-1], len(classes))

    def encode(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x


class VisionTransformer(ImageNetwork):
    """Patches as tokens of a pre-norm transformer (Dosovitskiy et al. 2021) with learned positions.

    The head reads the mean of all tokens instead of a class token, which suits small ones better (Beyer
    et al. 2022). Patches are embedded by a convolution, which stays dense, as a table of words does.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: Sequence[str],
        *,
        patch_size: int,  # pixels of a side
        dim: int,
        layers: int,
        heads: int,
        dropout: float = 0.0,  # of the embedded patches and behind every branch
    ) -> None:
        """Raises UsageError if patches do not fill the image, or heads do not divide dim."""
        super().__init__(shape, classes)
        channels, height, width = self.shape
        if height % patch_size or width % patch_size:
            raise UsageError(
                f"images of {height} × {width} pixels cannot be divided into patches of {patch_size} × "
                f"{patch_size}; give a --patch-size that divides both"
            )
        if dim % heads:
            raise UsageError(f"dim {dim} cannot be divided over {heads} heads; give a multiple")
        tokens = (height // patch_size) * (width // patch_size)
        self.patches = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, dim), std=0.02))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, len(classes))

    def encode(self, x: Tensor) -> Tensor:
        x = self.drop(self.patches(x).flatten(2).mT + self.positions)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.norm(x).mean(1)
        return found


class Block(nn.Module):
    """Self-attention and a feed-forward part, each on the normalised input and added to it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)  # it would move all scores of a query alike
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, FEED_FORWARD * dim)
        self.down = nn.Linear(FEED_FORWARD * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, tokens, dim)
        x = x + self.drop(self.output(self._attended(self.attention_norm(x))))
        inner = F.gelu(self.up(self.feed_forward_norm(x)))
        found: Tensor = x + self.drop(self.down(inner))
        return found

    def _attended(self, x: Tensor) -> Tensor:
        parts = (
            part(x).unflatten(-1, (self.heads, -1)) for part in (self.query, self.key, self.value)
        )
        query, key, value = (part.transpose(1, 2) for part in parts)
        found: Tensor = F.scaled_dot_product_attention(query, key, value)
        return found.transpose(1, 2).flatten(2)


def build(description: dict[str, Any]) -> ImageNetwork:
    """The network that `description` (a model's config.json) names, with new weights.

    Its mean and deviation are 0 and 1. Raises UsageError for a description that is of no network.
    """
    settings = dict(description)
    kind = settings.pop("architecture", None)
    try:
        if kind == "mlp":
            return Perceptron(**settings)
        if kind == "vit":
            return VisionTransformer(**settings)
    except UsageError:
        raise
    except (TypeError, ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"no network can be built of this description: {reason}") from None
    raise UsageError(f"architecture {kind!r} is none of mlp and vit")
