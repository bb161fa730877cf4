"""Records as prompts and responses, in the words the model is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from spectrain.errors import UsageError
from spectrain.tasks.finetune.options import FinetuneOptions
from spectrain.tasks.finetune.records import LABELS, Record, text_of
from spectrain.tasks.reading import require_characters

PROMPTS = ("prompt", "question", "instruction")
RESPONSES = ("response", "completion", "answer", "output")
Message = dict[str, str]  # "role" and "content"


class Pair(NamedTuple):
    """A prompt and its response."""

    where: str
    prompt: str  # as the model is given it
    response: str  # as it should go on, up to the end of its turn
    reference: str  # the response as the data have it


@dataclass(frozen=True)
class Wording:
    """How a prompt and a response become text."""

    tokenizer: Any
    options: FinetuneOptions

    @property
    def by_chat(self) -> bool:
        """Whether the tokenizer's chat template words the prompt; special tokens are in it then."""
        return self.options.template is None and bool(self.tokenizer.chat_template)

    def describe(self) -> str:
        if self.by_chat:
            return "worded by the tokenizer's chat template"
        return f"worded {self._template!r}"

    @property
    def _template(self) -> str:
        """A line end can be typed as \\n."""
        given = self.options.template
        return "{prompt}\n" if given is None else given.replace("\\n", "\n")

    def pair(self, record: Record) -> Pair:
        """Raises UsageError, naming file and line, for a record that is no prompt with a response."""
        if "messages" in record.fields and self.options.prompt_field is None:
            messages = _messages(record)
            if not self.by_chat:
                raise UsageError(
                    f"{record.where} is a chat, and "
                    + (
                        "--template words single prompts: leave it out"
                        if self.options.template
                        else "the tokenizer has no chat template: give records of prompt and response"
                    )
                )
        else:
            messages = self._of_fields(record)
        *before, last = messages
        if not last["content"].strip():
            raise UsageError(
                f"{record.where}: the response is empty, so there is nothing to learn; remove the line"
            )
        if not before[-1]["content"].strip():
            raise UsageError(f"{record.where}: the prompt is empty; remove the line")
        prompt, response = self._worded(record.where, before, last)
        return Pair(record.where, prompt, response, last["content"])

    def _of_fields(self, record: Record) -> list[Message]:
        o = self.options
        prompts = PROMPTS if o.prompt_field is None else (o.prompt_field,)
        if not any(name in record.fields for name in prompts) and LABELS[0] in record.fields:
            raise UsageError(
                f"{record.where} has a label and no prompt: give --classify to learn labels"
            )
        responses = RESPONSES if o.response_field is None else (o.response_field,)
        name, prompt = text_of(record, prompts, "--prompt-field")
        _, response = text_of(record, responses, "--response-field")
        if name == "instruction" and record.fields.get("input"):
            prompt = f"{prompt}\n\n{text_of(record, ('input',), '--prompt-field')[1]}"
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]

    def _worded(self, where: str, before: list[Message], last: Message) -> tuple[str, str]:
        if not self.by_chat:
            return self._template.replace("{prompt}", before[-1]["content"]), last["content"]
        try:
            given = self.tokenizer.apply_chat_template(
                before, tokenize=False, add_generation_prompt=True
            )
            whole = self.tokenizer.apply_chat_template([*before, last], tokenize=False)
        except Exception as error:  # a template may refuse in words of its own
            raise UsageError(f"{where}: the chat template does not take it: {error}") from error
        if not whole.startswith(given):
            raise UsageError(
                f"{where}: the tokenizer's chat template words a prompt otherwise when its response is "
                "there, so what comes behind it cannot be told: give --template"
            )
        return given, whole[len(given) :].rstrip()  # a line end behind the end of a turn


def _messages(record: Record) -> list[Message]:
    """The turns of a chat, the last one the assistant's."""
    turns = record.fields["messages"]
    good = isinstance(turns, Sequence) and not isinstance(turns, str) and len(turns) > 1
    if not good or not all(_is_message(turn) for turn in turns):
        raise UsageError(
            f"{record.where}: messages must be a list of two or more objects with role and content, both "
            "text"
        )
    if turns[-1]["role"] != "assistant":
        raise UsageError(
            f"{record.where}: the last message is by {turns[-1]['role'][:40]!r}; it must be the "
            "assistant's, which is learned"
        )
    for turn in turns:
        require_characters(turn["content"], record.where)
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(key), str) for key in ("role", "content")
    )
