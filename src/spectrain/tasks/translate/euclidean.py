"""Blocks of the ordinary Transformer (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrain.tasks.translate.transformer import Before, KeysValues, look_back


class Embedding(nn.Module):
    """√d times a token's vector, plus sines and cosines of its position; dropout."""

    def __init__(self, table: nn.Embedding, positions: int, dropout: float) -> None:
        super().__init__()
        self.table, self.dropout = table, dropout
        self.register_buffer(
            "positions", _sinusoids(positions, table.embedding_dim), persistent=False
        )
        self.positions: Tensor

    def forward(
        self,
        tokens: Tensor,  # (…, T)
        first: int,  # position of the first
    ) -> Tensor:  # (…, T, d)
        x = self.table(tokens) * math.sqrt(self.table.embedding_dim)
        x = x + self.positions[first : first + tokens.shape[-1]].to(x.dtype)
        return F.dropout(x, self.dropout, self.training)


def _sinusoids(positions: int, d: int) -> Tensor:
    """(positions, d), the section 3.5 of the paper: sines in one half, cosines in the other."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange((d + 1) // 2) / max(1, (d + 1) // 2 - 1))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), 1)[:, :d]


class Attention(nn.Module):
    """Multi-head attention; queries, keys, values and output are linear layers of their own."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))

    def keys_values(
        self,
        context: Tensor,  # (B, S, d)
    ) -> KeysValues:
        return self._heads(self.key(context)), self._heads(self.value(context))

    def attend(
        self,
        x: Tensor,  # (B, T, d)
        keys: Tensor,
        values: Tensor,
        *,
        mask: Tensor | None = None,  # broadcast to (B, heads, T, S), True where it may look
        causal: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:  # (B, T, d)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(
            self._heads(self.query(x)), keys, values, mask, dropout, is_causal=causal
        )
        merged: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return merged if residual is None else residual + merged

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class _Part(nn.Module):
    """x + dropout(f(x)), with a LayerNorm before f ("pre") or after all ("post")."""

    def __init__(self, d: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.before, self.dropout = norm == "pre", dropout

    def forward(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        found = F.dropout(f(self.norm(x) if self.before else x), self.dropout, self.training)
        summed = x + found
        return summed if self.before else self.norm(summed)


class FeedForward(nn.Module):
    """max(0, x W₁ + b₁) W₂ + b₂."""

    def __init__(self, d: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(d, width), nn.Linear(width, d), dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.inner(x)), self.dropout, self.training)
        found: Tensor = self.outer(hidden)
        return found


class Encoder(nn.Module):
    """A block of the encoder."""

    def __init__(
        self, d: int, heads: int, width: int, norm: str, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(d, heads, attention_dropout)
        self.feedforward = FeedForward(d, width, dropout)
        self.parts = nn.ModuleList(_Part(d, norm, dropout) for _ in range(2))

    def forward(
        self,
        x: Tensor,  # (B, S, d)
        mask: Tensor,  # (B, 1, 1, S)
    ) -> Tensor:  # (B, S, d)
        look, think = self.parts
        x = look(x, lambda h: self.attention.attend(h, *self.attention.keys_values(h), mask=mask))
        found: Tensor = think(x, self.feedforward)
        return found


class Decoder(nn.Module):
    """A block of the decoder."""

    def __init__(
        self, d: int, heads: int, width: int, norm: str, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.back = Attention(d, heads, attention_dropout)
        self.across = Attention(d, heads, attention_dropout)
        self.feedforward = FeedForward(d, width, dropout)
        self.parts = nn.ModuleList(_Part(d, norm, dropout) for _ in range(3))

    def forward(
        self,
        x: Tensor,  # (B, T, d), or (N, K, d) with `before`
        source: KeysValues,
        mask: Tensor,  # (B, 1, 1, S)
        before: Before | None = None,
    ) -> Tensor:  # as x
        back, across, think = self.parts
        x = back(x, lambda h: look_back(self.back, h, before))
        x = across(x, lambda h: self.across.attend(h, *source, mask=mask))
        found: Tensor = think(x, self.feedforward)
        return found


class Head(nn.Module):
    """Logits from the table of embeddings itself, and a bias."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.table.weight, self.bias)


def table(tokens: int, d: int) -> nn.Embedding:
    """Embeddings of unit length on average, so that √d times them is of the size of the positions."""
    made = nn.Embedding(tokens, d)
    nn.init.normal_(made.weight, std=d**-0.5)
    return made
