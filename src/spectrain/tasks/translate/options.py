"""What is trained on what: the settings of the translate task."""

from __future__ import annotations

from dataclasses import dataclass

from spectrain.errors import UsageError
from spectrain.settings import check, option


@dataclass(frozen=True)
class TranslateOptions:
    """What is trained on what."""

    data: str | None = option(
        None,
        help="a folder with train.de, train.en and the like (val, valid or dev; test), the common part of "
        "two such names (corpus for corpus.de and corpus.en), a .tsv file of two columns, or .jsonl with a "
        "field for each language; each may be compressed; default: German and English numbers in words",
    )
    source: str = option("de", help="language to translate from, as the data name it")
    target: str = option("en", help="language to translate into")
    test_set: str | None = option(
        None,
        help="of a folder: which files to test on, as test_2016_flickr; default: the first that begin with "
        "test",
    )
    lowercase: bool = option(False, help="take all text in lower case, references too")
    vocab_size: int = option(8000, help="tokens of each byte-level BPE vocabulary")
    vocabulary: str = option(
        "shared",
        help="one vocabulary and one table of embeddings for both languages, or one for each",
        choices=("shared", "separate"),
    )
    max_length: int = option(
        128, help="tokens: longer pairs are left out of training, longer texts cut", minimum=8
    )

    geometry: str = option(
        "euclidean",
        help="an ordinary Transformer, or HyboNet's in hyperbolic space",
        choices=("euclidean", "hyperbolic"),
    )
    dim: int = option(128, help="numbers in a token's representation", symbol="d", minimum=4)
    layers: int = option(3, help="of the encoder, and as many of the decoder", minimum=1)
    heads: int = option(4, help="of each attention", minimum=1)
    feedforward: int | None = option(
        None, help="width of the feed-forward parts; default: 4 d", minimum=2
    )
    norm: str | None = option(
        None,
        help="LayerNorm of the euclidean network before each part, which learns faster, or after it, as "
        "first published; default: pre",
        choices=("pre", "post"),
    )
    curvature: float = option(-1.0, help="of the hyperbolic space", symbol="K", below=0.0)
    dropout: float = option(0.1, help="of embeddings and parts", minimum=0.0, below=1.0)
    attention_dropout: float = option(0.1, help="of attention weights", minimum=0.0, below=1.0)
    label_smoothing: float = option(
        0.1, help="share of each label spread over all tokens", minimum=0.0, below=1.0
    )

    batch_tokens: int = option(
        4096, help="tokens of a batch on its longer side, padding included", minimum=1
    )
    batch_size: int = option(
        0, help="sentence pairs of a batch; 0: as many as --batch-tokens hold", minimum=0
    )
    accumulate: int = option(1, help="batches of one optimizer step", minimum=1)
    eval_pairs: int = option(
        500, help="pairs that validations in training take; the end takes all", minimum=1
    )
    beam: int = option(4, help="beams when translating at the end; 1: greedy", minimum=1)
    length_penalty: float = option(
        0.6,
        help="log p / ((5 + length)/6)^α decides between translations",
        symbol="α",
        minimum=0.0,
    )
    split_seed: int = option(
        1234, help="seed of what is divided off where data have no splits", minimum=0
    )

    def __post_init__(self) -> None:
        check(self, "train translate")
        if self.dim % self.heads or self.dim // self.heads < 2:
            raise UsageError(
                f"train translate: {self.heads} heads cannot divide dim {self.dim} into parts of at least "
                "2; choose a dim that is a multiple of the heads"
            )
        if self.source == self.target:
            raise UsageError(
                f"train translate: source and target are both {self.source!r}; give two languages"
            )
        if self.geometry == "hyperbolic" and self.norm is not None:
            raise UsageError(
                "train translate: the hyperbolic network has no LayerNorm; leave --norm out"
            )
        if self.batch_size == 0 and self.batch_tokens < self.max_length + 1:
            raise UsageError(
                f"train translate: batch_tokens is {self.batch_tokens}, which does not hold a text of "
                f"max_length {self.max_length} and its end; give at least {self.max_length + 1}"
            )

    @property
    def width(self) -> int:
        """Of the feed-forward parts."""
        return self.feedforward or 4 * self.dim
