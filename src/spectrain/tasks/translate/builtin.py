"""Parallel text with no download: numbers in words, German and English."""

from __future__ import annotations

import random

from spectrain.errors import UsageError

PAIRS = {"train": 8000, "validation": 400, "test": 400}
_DE = [
    "null",
    "ein",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
]
_EN = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_DE_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
_EN_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DE_TEENS = ["drei", "vier", "fünf", "sech", "sieb", "acht", "neun"]
_EN_TEENS = ["thir", "four", "fif", "six", "seven", "eigh", "nine"]


def numerals(source: str, target: str) -> dict[str, tuple[list[str], list[str]]]:
    """By split, texts in the source language and the same in the target language: numbers below a million.

    The same everywhere, and no number twice. Raises UsageError unless the languages are de and en.
    """
    words = {"de": german, "en": english}
    for language in (source, target):
        if language not in words:
            raise UsageError(
                f"without --data there are German (de) and English (en) numbers alone, not {language!r}; "
                "give --data with that language"
            )
    # Their lengths in digits are spread evenly: most numbers below a million have six.
    draw = random.Random(0)
    numbers = sorted({int(10 ** draw.uniform(0, 6)) for _ in range(20_000)})
    draw.shuffle(numbers)
    splits = {}
    for split, count in PAIRS.items():
        part, numbers = numbers[:count], numbers[count:]
        splits[split] = [words[source](n) for n in part], [words[target](n) for n in part]
    return splits


def german(n: int) -> str:
    """0 ≤ n < 1,000,000 as one word: zweiundvierzigtausendeinhundertsieben."""
    if n in (0, 1):
        return ("null", "eins")[n]
    thousands, rest = divmod(n, 1000)
    return (_de_hundreds(thousands) + "tausend" if thousands else "") + (
        _de_hundreds(rest, last=True) if rest else ""
    )


def _de_hundreds(n: int, last: bool = False) -> str:
    hundreds, rest = divmod(n, 100)
    word = _DE[hundreds] + "hundert" if hundreds else ""
    if rest == 1 and last:
        return word + "eins"
    return word + (_de_tens(rest) if rest else "")


def _de_tens(n: int) -> str:
    if n <= 12:
        return _DE[n]
    if n < 20:
        return _DE_TEENS[n - 13] + "zehn"
    tens, ones = divmod(n, 10)
    return (_DE[ones] + "und" if ones else "") + _DE_TENS[tens - 2]


def english(n: int) -> str:
    """0 ≤ n < 1,000,000: forty-two thousand one hundred and seven."""
    if n == 0:
        return "zero"
    thousands, rest = divmod(n, 1000)
    parts = [f"{_en_hundreds(thousands)} thousand"] if thousands else []
    if rest:
        linked = thousands and rest < 100
        parts.append(f"and {_en_hundreds(rest)}" if linked else _en_hundreds(rest))
    return " ".join(parts)


def _en_hundreds(n: int) -> str:
    hundreds, rest = divmod(n, 100)
    parts = [f"{_EN[hundreds]} hundred"] if hundreds else []
    return " and ".join([*parts, *([_en_tens(rest)] if rest else [])])


def _en_tens(n: int) -> str:
    if n <= 12:
        return _EN[n]
    if n < 20:
        return _EN_TEENS[n - 13] + "teen"
    tens, ones = divmod(n, 10)
    return _EN_TENS[tens - 2] + (f"-{_EN[ones]}" if ones else "")
