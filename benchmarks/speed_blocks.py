"""What is timed: stacks of decoder blocks as transformers builds them, without embeddings or head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.opt.modeling_opt import OPTDecoderLayer

SEQUENCE = 256


@dataclass(frozen=True)
class Shape:
    """A block's width d, the width of its feed-forward layers, heads, and its family."""

    name: str
    width: int
    feed_forward: int
    heads: int
    family: str = "llama"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("LLaMA 20M", 256, 688, 4),
        Shape("LLaMA 60M", 512, 1376, 8),
        Shape("OPT-125M", 768, 3072, 12, "opt"),
        # for the scan over widths; feed-forward 8/3 d, as in the LLaMA family
        Shape("d = 256", 256, 688, 4),
        Shape("d = 512", 512, 1376, 8),
        Shape("d = 1,024", 1024, 2736, 16),
        Shape("d = 2,048", 2048, 5461, 32),
    )
}


class Stack(nn.Module):
    """`count` decoder blocks of one shape, (batch, sequence, d) in and out, attention by sdpa."""

    def __init__(self, shape: Shape, count: int, sequence: int = SEQUENCE) -> None:
        super().__init__()
        common = {
            "hidden_size": shape.width,
            "num_attention_heads": shape.heads,
            "num_hidden_layers": count,
            "attention_dropout": 0.0,
            "attn_implementation": "sdpa",
        }
        self.rotary: tuple[Tensor, Tensor] | None = None
        if shape.family == "opt":
            opt = OPTConfig(ffn_dim=shape.feed_forward, dropout=0.0, **common)
            self.blocks = nn.ModuleList(OPTDecoderLayer(opt, i) for i in range(count))
        else:
            llama = LlamaConfig(intermediate_size=shape.feed_forward, **common)
            self.blocks = nn.ModuleList(LlamaDecoderLayer(llama, i) for i in range(count))
            positions = torch.arange(sequence)[None]
            self.rotary = LlamaRotaryEmbedding(llama)(torch.empty(1), positions)

    def forward(self, x: Tensor) -> Tensor:
        more = {} if self.rotary is None else {"position_embeddings": self.rotary}
        for block in self.blocks:
            x = block(x, **more)
        return x

    def _apply(self, fn, recurse=True):
        """The rotary tables move with the model."""
        if self.rotary is not None:
            self.rotary = (fn(self.rotary[0]), fn(self.rotary[1]))
        return super()._apply(fn, recurse)


class WholeModel(nn.Module):
    """LLaMA 60M with its embeddings and head (vocabulary 32,000): token ids in, the loss out."""

    def __init__(self, shape: Shape, layers: int = 8, vocabulary: int = 32_000) -> None:
        super().__init__()
        config = LlamaConfig(
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_attention_heads=shape.heads,
            num_hidden_layers=layers,
            vocab_size=vocabulary,
            attn_implementation="sdpa",
            use_cache=False,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=ids, labels=ids).loss
        return loss


def matrices(model: nn.Module) -> list[tuple[int, int]]:
    """(m, n) of every linear layer that methods exchange: all but an output head."""
    return [
        (layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not name.endswith("lm_head")
    ]
