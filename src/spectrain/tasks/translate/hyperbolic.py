"""Blocks of HyboNet's Transformer (Chen et al. 2021): residuals inside Lorentz layers, no LayerNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spectrain.hyperbolic import (
    LorentzAttention,
    LorentzClassifier,
    LorentzEmbedding,
    LorentzLinear,
)
from spectrain.tasks.translate.transformer import Before, KeysValues, look_back

SPREAD = 0.02  # of positions and points at the start


class Embedding(nn.Module):
    """A token's point through a Lorentz linear layer to which its position is added as the residual."""

    def __init__(
        self, table: LorentzEmbedding, positions: int, dropout: float, curvature: float
    ) -> None:
        super().__init__()
        d = table.weight.shape[1]
        self.table = table
        self.positions = nn.Parameter(SPREAD * torch.randn(positions, d))
        self.place = LorentzLinear(d, d, curvature=curvature, dropout=dropout)

    def forward(
        self,
        tokens: Tensor,  # (…, T)
        first: int,  # position of the first
    ) -> Tensor:  # (…, T, d)
        positions = self.positions[first : first + tokens.shape[-1]]
        found: Tensor = self.place(self.table(tokens), positions)
        return found


class FeedForward(nn.Module):
    """Two Lorentz linear layers with ReLU between them; the residual enters the second."""

    def __init__(self, d: int, width: int, dropout: float, curvature: float) -> None:
        super().__init__()
        self.inner = LorentzLinear(d, width, curvature=curvature)
        self.outer = LorentzLinear(
            width,
            d,
            curvature=curvature,
            dropout=dropout,
            activation=torch.relu,
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outer(self.inner(x), x)
        return found


class Encoder(nn.Module):
    """A block of the encoder."""

    def __init__(
        self,
        d: int,
        heads: int,
        width: int,
        dropout: float,
        attention_dropout: float,
        curvature: float,
    ) -> None:
        super().__init__()
        self.attention = attention(d, heads, attention_dropout, curvature)
        self.feedforward = FeedForward(d, width, dropout, curvature)

    def forward(
        self,
        x: Tensor,  # (B, S, d)
        mask: Tensor,  # (B, 1, 1, S)
    ) -> Tensor:  # (B, S, d)
        x = self.attention(x, mask=mask, residual=x)
        found: Tensor = self.feedforward(x)
        return found


class Decoder(nn.Module):
    """A block of the decoder."""

    def __init__(
        self,
        d: int,
        heads: int,
        width: int,
        dropout: float,
        attention_dropout: float,
        curvature: float,
    ) -> None:
        super().__init__()
        self.back = attention(d, heads, attention_dropout, curvature)
        self.across = attention(d, heads, attention_dropout, curvature)
        self.feedforward = FeedForward(d, width, dropout, curvature)

    def forward(
        self,
        x: Tensor,  # (B, T, d), or (N, K, d) with `before`
        source: KeysValues,
        mask: Tensor,  # (B, 1, 1, S)
        before: Before | None = None,
    ) -> Tensor:  # as x
        x = look_back(self.back, x, before, residual=x)
        x = self.across.attend(x, *source, mask=mask, residual=x)
        found: Tensor = self.feedforward(x)
        return found


def attention(d: int, heads: int, dropout: float, curvature: float) -> LorentzAttention:
    return LorentzAttention(d, heads, curvature=curvature, dropout=dropout)


def table(tokens: int, d: int, curvature: float) -> LorentzEmbedding:
    """Points near the origin, where all logits are alike; they move as fast as an ordinary table's rows.

    By Riemannian Adam as published they would move √d times more slowly.
    """
    return LorentzEmbedding(tokens, d, curvature=curvature, deviation=SPREAD, pace=math.sqrt(d))


def head(table: LorentzEmbedding, curvature: float) -> LorentzClassifier:
    """Logits by the distance to the tokens' own points."""
    tokens, d = table.weight.shape
    made = LorentzClassifier(d, tokens, curvature=curvature)
    made.points = table.weight
    return made
