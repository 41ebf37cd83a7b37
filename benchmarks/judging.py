"""How much better, on questions never learnt on: figures with intervals, and what length has to do with it.

Every figure is a function of sums over questions. Its interval is a percentile bootstrap over seeds, and within a seed
over questions, since answers to one question resemble each other. With three seeds the spread between seeds is known
only roughly: the interval is honest about questions, hopeful about seeds.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Figure = Callable[[Floats], Floats]
"""(..., F) sums over questions → (...) values."""

DRAWS = 4000
MATCHED = 0.10
"""Answers count as equally long where their words differ by no more than this share."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer to a held-out question. `kl` is log π − log π_base, nats, of the new version's answers; else 0."""

    liked: bool
    words: int
    tokens: int
    kl: float = 0.0

    def row(self) -> list[float]:
        """As it is kept in a file."""
        return [int(self.liked), self.words, self.tokens, round(self.kl, 4)]

    @classmethod
    def of(cls, row: Sequence[float]) -> "Seen":
        """The opposite of `row`."""
        return cls(bool(row[0]), int(row[1]), int(row[2]), row[3])


@dataclass(frozen=True, slots=True)
class Question:
    """Base's and the new version's answers to one question."""

    text: str
    base: list[Seen]
    new: list[Seen]

    def row(self) -> dict[str, Any]:
        """As it is kept in a file."""
        return {"question": self.text, "base": [s.row() for s in self.base], "new": [s.row() for s in self.new]}

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Question":
        """The opposite of `row`."""
        return cls(row["question"], [Seen.of(s) for s in row["base"]], [Seen.of(s) for s in row["new"]])


Seeds = Sequence[Sequence[Question]]
"""The questions of each seed."""

Duel = tuple[Sequence[Question], Sequence[Question]]
"""Two learners' answers to the same questions, judged by the same taste."""


def gain_points(seeds: Seeds) -> list[float]:
    """[mean, low, high]: points that the 👍-rate rose."""
    return _interval(_sums(seeds, _gain_sums), lambda s: 100 * s[..., 0] / s[..., 1])


def win_rate(seeds: Seeds) -> list[float]:
    """[mean, low, high]: how often the new answer is preferred to base's on the same question, ties counting half.

    With thumbs as the judge this is ½ + gain / 200: no news, but the usual unit.
    """
    return _interval(_sums(seeds, _gain_sums), lambda s: 0.5 + 0.5 * s[..., 0] / s[..., 1])


def length_matched_gain(seeds: Seeds) -> list[float]:
    """[mean, low, high]: the gain in points between answers of about the same number of words to the same question."""
    return _interval(_sums(seeds, _matched_sums), lambda s: 100 * _ratio(s[..., 0], s[..., 1]))


def matched_share(seeds: Seeds) -> float:
    """Share of the pairs of answers that are of about the same length."""
    sums = np.sum([_matched_sums(q) for questions in seeds for q in questions], axis=0)
    return float(sums[1] / sums[2])


def length_adjusted_gain(seeds: Seeds) -> list[float]:
    """[mean, low, high]: the gain in points at equal length, by regression.

    The coefficient of "new" in liked ~ question + new + words (ordinary least squares with a constant a question).
    """

    def coefficient(s: Floats) -> Floats:
        new_new, new_words, words_words, new_liked, words_liked = np.moveaxis(s, -1, 0)
        determinant = new_new * words_words - new_words**2
        flat = determinant <= 1e-9 * np.maximum(new_new * words_words, 1e-9)
        full = _ratio(words_words * new_liked - new_words * words_liked, np.where(flat, 1.0, determinant))
        return 100 * np.where(flat, _ratio(new_liked, new_new), full)

    return _interval(_sums(seeds, _regression_sums), coefficient)


def mean_of(seeds: Seeds, side: str, field: str) -> float:
    """Mean of a field of `Seen` over all answers of one side, each question weighing the same."""
    per_question = [np.mean([getattr(s, field) for s in getattr(q, side)]) for questions in seeds for q in questions]
    return float(np.mean(per_question))


def kept_share(part: Seeds, whole: Seeds) -> list[float]:
    """[ratio, low, high]: gain of one arm ÷ gain of another that was judged on the same seeds and questions."""
    sums = [
        np.stack([np.concatenate([_gain_sums(a), _gain_sums(b)]) for a, b in zip(left, right, strict=True)])
        for left, right in zip(part, whole, strict=True)
    ]
    return _interval(sums, lambda s: _ratio(s[..., 0], s[..., 2]))


def lead_points(seeds: Sequence[Sequence[Duel]]) -> list[float]:
    """[mean, low, high]: points by which the first learner's gain exceeds the second's, every duel weighing the same.

    Args:
        seeds: each seed's duels, one a taste. Tastes of a seed share their questions, so that these, not their answers
            to a taste, are what the bootstrap draws.

    Raises:
        ValueError: for a duel over different questions.
    """
    return _interval([_lead_sums(duels) for duels in seeds], lambda s: 100 * s[..., 0] / s[..., 1])


# Sums over questions


def _gain_sums(question: Question) -> Floats:
    new, base = (np.mean([s.liked for s in side]) for side in (question.new, question.base))
    return np.array([new - base, 1.0])


def _lead_sums(duels: Sequence[Duel]) -> Floats:
    """(questions, 2): the difference of gains, summed over tastes, and how many these are."""
    by_text: dict[str, Floats] = defaultdict(lambda: np.zeros(2))
    for duel in duels:
        mine, theirs = ({q.text: _gain_sums(q)[0] for q in side} for side in duel)
        if mine.keys() != theirs.keys():
            raise ValueError("both learners must have answered the same questions")
        for text, gain in mine.items():
            by_text[text] += np.array([gain - theirs[text], 1.0])
    return np.stack(list(by_text.values()))


def _matched_sums(question: Question) -> Floats:
    pairs = [(b, n) for b in question.base for n in question.new]
    matched = [float(n.liked) - float(b.liked) for b, n in pairs if abs(n.words - b.words) <= MATCHED * max(b.words, 1)]
    return np.array([sum(matched), len(matched), len(pairs)], dtype=float)


def _regression_sums(question: Question) -> Floats:
    """Cross products of new, words and liked, each less its mean over the question's answers."""
    answers = [*question.base, *question.new]
    new = np.array([0.0] * len(question.base) + [1.0] * len(question.new))
    words, liked = np.array([float(s.words) for s in answers]), np.array([float(s.liked) for s in answers])
    new, words, liked = (x - x.mean() for x in (new, words, liked))
    return np.array([new @ new, new @ words, words @ words, new @ liked, words @ liked])


def _sums(seeds: Seeds, of: Callable[[Question], Floats]) -> list[Floats]:
    return [np.stack([of(q) for q in questions]) for questions in seeds]


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, and 0 where there is nothing below."""
    empty = np.abs(below) <= 1e-12
    return np.where(empty, 0.0, above / np.where(empty, 1.0, below))


# The bootstrap


def _interval(seeds: Sequence[Floats], figure: Figure) -> list[float]:
    value = float(figure(np.sum([s.sum(0) for s in seeds], axis=0)))
    draws = figure(_resampled(seeds))
    low, high = np.quantile(draws, [0.025, 0.975])
    return [round(x, 4) for x in (value, float(low), float(high))]


def _resampled(seeds: Sequence[Floats]) -> Floats:
    """(DRAWS, F): sums over resampled questions of resampled seeds."""
    generator = np.random.default_rng(0)
    total = np.zeros((DRAWS, seeds[0].shape[1]))
    for _ in seeds:
        chosen = generator.integers(len(seeds), size=DRAWS)
        for number, sums in enumerate(seeds):
            rows = np.flatnonzero(chosen == number)
            counts = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=len(rows))
            total[rows] += counts @ sums
    return total
