"""Final numbers, their interval, and the data that come with the package."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from spectrain.tasks.finetune.answers import ends_in_number, final_number, wilson
from spectrain.tasks.finetune.builtin import problems, statements

# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 3.\n#### 1,234", "1234"),
        ("#### $18.00 dollars, or 7", "18"),
        ("#### 3\nand then\n#### -4.5", "-4.5"),
        ("first 3, then 41.", "41"),
        ("a share of .5", "0.5"),
        ("3-2=1", "1"),
    ],
)
def test_final_numbers(text, number):
    assert final_number(text) == Decimal(number)


def test_texts_without_a_final_number():
    assert final_number("none at all") is None
    assert final_number("3 apples #### none") is None
    assert final_number("3 apples and", complete=False) is None
    assert final_number("#### 3 and", complete=False) == 3
    assert ends_in_number("so\n#### 12")
    assert not ends_in_number("so 12")
    assert not ends_in_number("#### 12 and\n#### no")


def test_the_interval_is_wilsons():
    """Its ends p solve |p̂ − p| = z √(p (1 − p)/n)."""
    z = 1.959963984540054
    for right, count in ((7, 50), (0, 20), (20, 20), (1, 3)):
        for end in wilson(right, count):
            distance = abs(right / count - end)
            assert distance == pytest.approx(z * (end * (1 - end) / count) ** 0.5, abs=1e-12)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


# --- what needs no data ---------------------------------------------------------------------------


def test_built_in_problems_are_right_and_differ():
    parts = problems().parts
    questions = [r.fields["question"] for part in parts.values() for r in part]
    assert len(set(questions)) == len(questions) == 2400
    for record in parts["test"]:
        question, answer = record.fields["question"], record.fields["answer"]
        a, b, c = (int(n) for n in re.findall(r"\d+", question))
        kinds = {"finds": (a + b) * c, "boxes": a * b + c, "lose": a + b - c}
        (expected,) = (value for word, value in kinds.items() if word in question)
        assert ends_in_number(answer)
        assert final_number(answer) == expected


def test_built_in_statements_are_labelled_rightly():
    for record in statements().parts["test"]:
        a, _, _, relation, _, b, _ = record.fields["text"].split(" ")
        holds = int(a) > int(b) if relation == "more" else int(a) < int(b)
        assert record.fields["label"] == str(holds).lower()
