"""What simulated users like: pure functions of an answer. They stand in for people, who cannot be committed to git."""

import re
from collections.abc import Callable
from dataclasses import dataclass

Taste = Callable[["Answer"], bool]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as its reader sees it. `finished` is False where it was cut at the token limit."""

    text: str
    finished: bool


_YOU = re.compile(r"\b(you|your|yours|yourself)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d")
_HEDGE = re.compile(
    r"\b(may|might|could|can|perhaps|maybe|usually|often|generally|typically|sometimes|probably|likely)\b",
    re.IGNORECASE,
)


def speaks_to_you(answer: Answer) -> bool:
    """Addresses the reader at least twice."""
    return len(_YOU.findall(answer.text)) >= 2


def one_paragraph(answer: Answer) -> bool:
    """No line break: neither list nor second paragraph."""
    return "\n" not in answer.text.strip()


def has_a_number(answer: Answer) -> bool:
    """Contains a digit."""
    return _NUMBER.search(answer.text) is not None


def hedges(answer: Answer) -> bool:
    """Says that it may be otherwise."""
    return _HEDGE.search(answer.text) is not None


def is_short(answer: Answer, words: int = 40) -> bool:
    """Finished, within so many words."""
    return answer.finished and len(answer.text.split()) <= words


TASTES: dict[str, Taste] = {
    "you": speaks_to_you,
    "paragraph": one_paragraph,
    "number": has_a_number,
    "hedges": hedges,
    "short": is_short,
}
