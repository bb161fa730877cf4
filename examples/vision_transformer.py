"""A small vision transformer of one's own, trained by any method. Seconds on one core:

python examples/vision_transformer.py --method sst
python examples/vision_transformer.py --method galore --steps 50

The pictures are made as they are needed: striped patterns in four directions and two widths, under
noise; the model has to name one of the eight kinds.
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spectrain

METHODS = {
    "full": spectrain.FullRank(),
    "lora": spectrain.LoRA(rank=8),
    "relora": spectrain.ReLoRA(rank=8, merge_every=25, rewarm=5),
    "sst": spectrain.SST(rank=8, resample_every=25, warmup=5),
    "galore": spectrain.GaLore(rank=8, refresh_every=25, scale=1.0),
}
SIZE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 16, 4, 64, 4, 2, 8


class Block(nn.Module):
    """Attention and a feed-forward part, each after a LayerNorm.

    Written out, since nn.MultiheadAttention reads its output layer's weight without calling the
    layer: it would have to stay dense.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # (batch, patches, WIDTH)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches, blocks, the mean over patches, one linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:  # (batch, 1, SIZE, SIZE) -> (batch, CLASSES)
        x = self.embed(pictures).flatten(2).mT + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def patterns(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (count, 1, SIZE, SIZE) and their kinds (count,)."""
    kinds = torch.randint(CLASSES, (count,), generator=generator)
    angle = (kinds % 4)[:, None, None] * math.pi / 4
    waves = (2 + 2 * (kinds // 4))[:, None, None] * 2 * math.pi / SIZE
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    stripes = torch.sin(waves * (rows * angle.sin() + columns * angle.cos()) + phase)
    noise = 1.5 * torch.randn(count, SIZE, SIZE, generator=generator)
    return (stripes + noise).unsqueeze(1), kinds


def main() -> None:
    """Train, measure, merge, measure again."""
    parser = argparse.ArgumentParser(description="train a small vision transformer")
    parser.add_argument("--method", choices=METHODS, default="sst")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    data = torch.Generator().manual_seed(1)
    held_out = patterns(512, torch.Generator().manual_seed(2))
    model = VisionTransformer()
    spectrain.apply(model, METHODS[options.method], exclude=("head",))
    optimizer = torch.optim.AdamW(spectrain.param_groups(model, options.lr, weight_decay=0.01))
    spectrain.attach(model, optimizer)

    @torch.no_grad()
    def accuracy() -> float:
        pictures, kinds = held_out
        return (model(pictures).argmax(1) == kinds).float().mean().item()

    for step in range(1, options.steps + 1):
        pictures, kinds = patterns(64, data)
        loss = F.cross_entropy(model(pictures), kinds)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item():.3f}, held-out accuracy {accuracy():.1%}")

    spectrain.merge(model)
    print(f"merged into ordinary layers: held-out accuracy {accuracy():.1%} (chance: 12.5%)")


if __name__ == "__main__":
    main()
