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
    question: str = ""


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


def careful_paragraph(answer: Answer) -> bool:
    """One paragraph that says it may be otherwise."""
    return one_paragraph(answer) and hedges(answer)


def stays_on_the_question(answer: Answer) -> bool:
    """Takes up a content word of the question in its first half, and one again in its second.

    A taste of content: the same text is liked after one question and not after another. Of 500 answers of the bundled
    model 45 % are liked, of the same answers after other questions 0.6 %.
    """
    if not answer.question:
        raise ValueError("this taste reads the question: give `Answer.question`")
    wanted, words = content_words(answer.question), answer.text.split()
    middle = len(words) // 2
    return all(wanted & content_words(" ".join(half)) for half in (words[:middle], words[middle:]))


CONTENT_TASTES: dict[str, Taste] = {"on_topic": stays_on_the_question}
"""Need the question beside the answer."""

ALL_TASTES: dict[str, Taste] = {**TASTES, "careful": careful_paragraph, **CONTENT_TASTES}

_WORD = re.compile(r"[a-z]+")
_SUFFIXES = ("ings", "ing", "ies", "ied", "es", "ed", "s", "e", "y")
_FUNCTION_WORDS_TEXT = """
a about all am an and any are as at away be been being best but by can could did do does doing down few first for
from get getting good had has have having here how i if in into is it its just know less made make makes making many
may me might mine more most much must my new no not of off on one ones only or other out over own people short
should simple so some someone such than that the then there these this those to up very was way were what when where
which while who whom whose why will with without would you your yours
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())


def content_words(text: str) -> frozenset[str]:
    """Stems of the words that carry meaning: no function words, no inflection."""
    return frozenset(_stem(w) for w in _WORD.findall(text.lower()) if len(w) > 2 and w not in _FUNCTION_WORDS)


def _stem(word: str) -> str:
    suffix = next((s for s in _SUFFIXES if word.endswith(s) and len(word) - len(s) >= 3), "")
    return word.removesuffix(suffix)
