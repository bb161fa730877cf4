"""Problems that need no download: sums in words with their steps, and statements that hold or do not."""

from __future__ import annotations

import random

from spectrain.tasks.finetune.records import Record, Records

COUNTS = {"train": 2000, "validation": 200, "test": 200}
_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatou", "Goran", "Hana", "Ivo", "Jun")
_THINGS = ("apples", "books", "coins", "eggs", "keys", "marbles", "pens", "stamps")


def problems() -> Records:
    """Word problems of two steps in GSM8K's form: "question", and "answer" with "#### number" at its end.

    The same everywhere, and no question twice.
    """
    draw, seen = random.Random(0), set()
    parts: dict[str, list[Record]] = {}
    for split, count in COUNTS.items():
        own: list[Record] = []
        while len(own) < count:
            question, answer = _problem(draw)
            if question not in seen:
                seen.add(question)
                where = f"built-in {split} problem {len(own) + 1}"
                own.append(Record(where, {"question": question, "answer": answer}))
        parts[split] = own
    return Records("built-in word problems", parts)


def statements() -> Records:
    """Comparisons of two counts in words, with the label "true" or "false"; no text twice."""
    draw, seen = random.Random(0), set()
    parts: dict[str, list[Record]] = {}
    for split, count in COUNTS.items():
        own: list[Record] = []
        while len(own) < count:
            a, b = draw.sample(range(2, 100), 2)
            thing, relation = draw.choice(_THINGS), draw.choice(("more", "fewer"))
            text = f"{a} {thing} are {relation} than {b} {thing}."
            if text not in seen:
                seen.add(text)
                label = "true" if (a > b) == (relation == "more") else "false"
                where = f"built-in {split} statement {len(own) + 1}"
                own.append(Record(where, {"text": text, "label": label}))
        parts[split] = own
    return Records("built-in statements", parts)


def _problem(draw: random.Random) -> tuple[str, str]:
    name, other = draw.sample(_NAMES, 2)
    thing = draw.choice(_THINGS)
    a, b, c = draw.randint(2, 30), draw.randint(2, 30), draw.randint(2, 5)
    kind = draw.randrange(3)
    if kind == 0:
        first, total = a + b, (a + b) * c
        question = (
            f"{name} has {a} {thing} and finds {b} more. {other} has {c} times as many as {name} now. "
            f"How many {thing} has {other}?"
        )
        steps = f"{name} has {a} + {b} = {first} {thing}.\n{other} has {first} * {c} = {total}."
    elif kind == 1:
        first, total = a * c, a * c + b
        question = (
            f"A box holds {a} {thing}. {name} buys {c} boxes and gets {b} {thing} from {other}. "
            f"How many {thing} has {name}?"
        )
        steps = f"The boxes hold {a} * {c} = {first} {thing}.\nWith {b} more they are {total}."
    else:
        first, total = a + b, a + b - c
        question = (
            f"{name} and {other} put {a} and {b} {thing} on a table and lose {c} of them. "
            f"How many {thing} are left?"
        )
        steps = f"Together they had {a} + {b} = {first} {thing}.\nOf these {total} are left."
    return question, f"{steps}\n#### {total}"
