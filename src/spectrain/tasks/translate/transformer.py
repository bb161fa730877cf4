"""An encoder–decoder Transformer, whatever the geometry of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spectrain.tasks.translate.vocabulary import PAD, SMALLEST, START

KeysValues = tuple[Tensor, Tensor]  # (B, heads, S, d / heads) each


class Attending(Protocol):
    """Attention with keys and values that can be kept."""

    def keys_values(self, context: Tensor) -> KeysValues: ...

    def attend(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor: ...


class EncoderBlock(Protocol):
    def __call__(self, x: Tensor, mask: Tensor) -> Tensor: ...


class DecoderBlock(Protocol):
    """Attention to what stands before, to the source, and a feed-forward part."""

    across: Attending

    def __call__(
        self, x: Tensor, source: KeysValues, mask: Tensor, before: Before | None = None
    ) -> Tensor: ...


class Before:
    """Keys and values of what a decoder block has seen so far; grows by one position with each step."""

    def __init__(self) -> None:
        self.kept: KeysValues | None = None

    def grow(self, new: KeysValues) -> KeysValues:
        """All so far, `new` ones last: (B, heads, t, d / heads) each."""
        if self.kept is not None:
            new = tuple(torch.cat(pair, 2) for pair in zip(self.kept, new, strict=True))  # type: ignore[assignment]
        self.kept = new
        return new

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.kept is not None:
            self.kept = self.kept[0][rows], self.kept[1][rows]


@dataclass
class Decoding:
    """Where the translation of N texts stands, each by K beams side by side."""

    source: list[KeysValues]  # of each decoder block, (N, heads, S, d / heads)
    mask: Tensor  # (N, 1, 1, S)
    before: list[Before]  # of each decoder block, N · K rows
    position: int = 0

    def select(self, texts: Tensor | None, beams: Tensor) -> None:
        """Go on with these beams (rows of all N · K), and with these texts alone if they are not all."""
        for before in self.before:
            before.select(beams)
        if texts is not None:
            self.source = [(keys[texts], values[texts]) for keys, values in self.source]
            self.mask = self.mask[texts]


class Translator(nn.Module):
    """Source tokens (B, S) and target tokens (B, T) to logits of the next target token (B, T, V)."""

    def __init__(
        self,
        source: nn.Module,  # of (tokens, position of the first): a vector or point for each
        target: nn.Module,
        encoder: Sequence[nn.Module],  # EncoderBlock each
        decoder: Sequence[nn.Module],  # DecoderBlock each
        norms: tuple[nn.Module, nn.Module],  # on what encoder and decoder make in the end
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.encoder_norm, self.decoder_norm = norms
        self.head = head

    def forward(
        self,
        source: Tensor,  # (B, S), padded on the right
        target: Tensor,  # (B, T), likewise; begins with the start
    ) -> Tensor:  # (B, T, V)
        state = self.begin(source)
        x = self.target(target, 0)
        for block, keys in zip(self.decoder, state.source, strict=True):
            x = block(x, keys, state.mask)  # padding is on the right, where nothing before looks
        logits: Tensor = self.head(self.decoder_norm(x))
        return logits

    def begin(
        self,
        source: Tensor,  # (N, S)
    ) -> Decoding:
        """Read the texts; nothing is translated yet."""
        mask = (source != PAD)[:, None, None]
        x = self.source(source, 0)
        for block in self.encoder:
            x = block(x, mask)
        x = self.encoder_norm(x)
        blocks: list[Any] = list(self.decoder)
        keys = [block.across.keys_values(x) for block in blocks]
        return Decoding(keys, mask, [Before() for _ in blocks])

    def step(
        self,
        tokens: Tensor,  # (N, K): the last token of each beam
        state: Decoding,
    ) -> Tensor:  # (N, K, V): logits of the next; `state` has grown by `tokens`
        x = self.target(tokens[..., None], state.position).squeeze(2)
        for block, keys, before in zip(self.decoder, state.source, state.before, strict=True):
            x = block(x, keys, state.mask, before)
        state.position += 1
        logits: Tensor = self.head(self.decoder_norm(x))
        return logits


def look_back(
    attention: Attending,
    x: Tensor,  # (B, T, d) all positions; or (N, K, d), the newest position of each beam
    before: Before | None,
    residual: Tensor | None = None,
) -> Tensor:  # as x
    """Attention of each position to itself and what stands before it."""
    if before is None:
        return attention.attend(x, *attention.keys_values(x), causal=True, residual=residual)
    alone = x.flatten(0, 1)[:, None]
    kept = None if residual is None else residual.flatten(0, 1)[:, None]
    keys = before.grow(attention.keys_values(alone))
    return attention.attend(alone, *keys, residual=kept).view_as(x)


def probe_of(source: Tensor) -> Tensor:
    """A target of the same shape, to look at a model's outputs with: a start, and tokens all have."""
    known = source[:, :-1].clamp(max=SMALLEST - 1)
    return torch.cat((torch.full_like(source[:, :1], START), known), 1)
