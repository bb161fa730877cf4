"""What is trained on what: the settings of the language-model task."""

from __future__ import annotations

from dataclasses import dataclass

from spectrain.settings import check, option

# Measured by benchmarks/cross_entropy.py: fewer tokens a chunk are slower, more take memory only.
LOSS_CHUNK = 512


@dataclass(frozen=True)
class LanguageModelOptions:
    """What is trained on what."""

    model: str = option(
        "llama-9m",
        help="a preset (llama-9m … llama-7b, opt-125m …), a transformers folder, or a hub name "
        "(organisation/name)",
    )
    data: str | None = option(
        None,
        help="text or JSON-lines file, a folder of them (may be compressed), or a hub data set; "
        "default: the Python standard library's own source code",
    )
    text_field: str | None = option(None, help="field of the JSON records that holds the text")
    max_bytes: int | None = option(None, help="read at most so many bytes of text", minimum=1)
    tokenizer: str | None = option(
        None, help="a transformers folder or name; default: a byte-level BPE learned from the data"
    )
    vocab_size: int = option(4096, help="size of the learned BPE vocabulary", minimum=257)
    sequence_length: int = option(256, help="tokens a sequence", minimum=2)
    batch_size: int = option(16, help="sequences a backward pass", minimum=1)
    accumulate: int = option(1, help="backward passes an optimizer step", minimum=1)
    loss_chunk: int = option(
        LOSS_CHUNK,
        help="tokens whose logits are in memory at a time, in the loss; 0: those of the whole batch",
        minimum=0,
    )
    gradient_checkpointing: bool = option(
        False,
        help="keep only the input of each transformer block for the backward pass, and compute the "
        "rest again: much less memory, about a third more time",
    )
    eval_tokens: int = option(
        65536, help="validation tokens to measure on during training", minimum=1
    )
    final_tokens: int = option(
        1048576, help="validation and test tokens to measure on at the end", minimum=1
    )

    def __post_init__(self) -> None:
        check(self, "train lm")
