"""What is fine-tuned on what: the settings of both kinds of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from spectrain.errors import UsageError
from spectrain.settings import check, option
from spectrain.tasks.lm.options import LOSS_CHUNK


@dataclass(frozen=True)
class FinetuneOptions:
    """What is fine-tuned on what."""

    model: str | None = option(
        None,
        help="a transformers folder, a .gguf file or a hub name (organisation/name), with its tokenizer",
    )
    adapter: str | None = option(
        None,
        help="a folder with a LoRA adapter as peft writes it, whose factors training goes on with "
        "(--method lora or relora)",
    )
    keep_layers: int | None = option(
        None,
        help="only the first so many layers, for quick runs; what such a model scores says nothing of the "
        "whole one",
        minimum=1,
    )
    train_ordinary: bool = option(
        False,
        help="also train what the method does not exchange (embeddings, norms, biases, output head), which "
        "is frozen otherwise",
    )
    data: str | None = option(
        None,
        help="a file, or a folder with files named train…, valid… or dev…, and test… (compressed or not): "
        ".jsonl of prompts and responses, or texts with labels as .jsonl, .tsv, .csv or lines 'label text' "
        "in .txt; default: problems made by rule",
    )
    validation: float = option(
        0.05,
        help="share of the training examples for validation, where data have none of their own",
        above=0.0,
        below=1.0,
    )
    test: float = option(0.05, help="the same for test", above=0.0, below=1.0)
    split_seed: int = option(1234, help="seed of that division, the same for all --seed", minimum=0)
    max_length: int = option(
        512,
        help="tokens of an example; longer prompts with their responses are left out, longer texts cut",
        minimum=2,
    )
    batch_size: int = option(
        8, help="examples in one backward pass; with --packing: rows of --max-length", minimum=1
    )
    accumulate: int = option(1, help="backward passes for one optimizer step", minimum=1)
    gradient_checkpointing: bool = option(
        False,
        help="keep only the input of each transformer block for the backward pass, and compute the "
        "rest again: much less memory, about a third more time",
    )
    eval_examples: int = option(
        200, help="examples that validations in training take, at most", minimum=1
    )
    final_examples: int | None = option(
        None, help="the same at the end, of validation and of test; default: all", minimum=1
    )

    prompt_field: str | None = option(
        None,
        help="field of a record that holds the prompt; default: prompt, question or instruction (with its "
        "input); a record may hold messages instead",
    )
    response_field: str | None = option(
        None,
        help="field that holds the response; default: response or completion, answer or output",
    )
    template: str | None = option(
        None,
        help="what the model is given, with {prompt} in it, as 'Q: {prompt}\\nA: ' (\\n is a line end); "
        "default: the tokenizer's chat template where it has one, else the prompt and a line end",
    )
    packing: bool = option(
        False, help="several examples in one row, without sight of each other, instead of padding"
    )
    loss_chunk: int = option(
        LOSS_CHUNK,
        help="tokens whose logits are in memory at a time, in the loss; 0: those of the whole batch",
        minimum=0,
    )
    answer: str = option(
        "auto",
        help="judge generated responses by their final number; auto: where all responses end in "
        "'#### number', as GSM8K's",
        choices=("auto", "number", "none"),
    )
    generate: int = option(
        200, help="examples to generate a response for at the end, at most; 0: none", minimum=0
    )
    max_new_tokens: int = option(256, help="tokens of a generated response, at most", minimum=1)
    forgetting: str | None = option(
        None,
        help="a second text (.txt or .jsonl, compressed or not) whose perplexity tells what was forgotten",
    )
    forgetting_tokens: int = option(32768, help="tokens of it to measure on, at most", minimum=4)
    before: bool = option(True, help="measure the model on test data before training, too")

    classify: bool = option(
        False, help="learn labels of texts by a new head on the model, not responses to prompts"
    )
    text_field: str | None = option(
        None,
        help="with --classify: field or column of the text; default: text, sentence, sentence1 or premise",
    )
    pair_field: str | None = option(
        None,
        help="with --classify: of a second text to read beside it; default: hypothesis, sentence2 or "
        "text_pair, where there is one",
    )
    label_field: str | None = option(
        None, help="with --classify: of the label; default: label, class or sentiment"
    )
    metric: str = option(
        "accuracy",
        help="with --classify: what decides over rates and checkpoints; the others are measured, too",
        choices=("accuracy", "f1", "matthews"),
    )

    def __post_init__(self) -> None:
        check(self, "train finetune")
        if self.model is None:
            raise UsageError(
                "train finetune: there is no model to tune; give --model: a transformers folder (as "
                "`spectrain merge` writes one), a .gguf file or a hub name"
            )
        if self.template is not None and self.template.count("{prompt}") != 1:
            raise UsageError(
                f"train finetune: template is {self.template[:200]!r}; it must hold {{prompt}} once"
            )
        if self.classify and (wrong := self._not_of_texts()):
            raise UsageError(
                f"train finetune: {wrong[0]} is of prompts and responses, and --classify learns labels; "
                "give one of them"
            )

    def _not_of_texts(self) -> list[str]:
        """Flags of the other kind that were given."""
        given = {
            "--prompt-field": self.prompt_field,
            "--response-field": self.response_field,
            "--template": self.template,
            "--packing": self.packing,
            "--forgetting": self.forgetting,
        }
        return [flag for flag, value in given.items() if value]
