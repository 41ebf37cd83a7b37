"""Figures of answers to held-out rows, each with its 95 % interval: accuracy, BLEU, chrF, perplexity.

All of them are a function of sums over rows (hits and rows; matched and possible n-grams; nats and tokens), so one
bootstrap serves all: clusters of instructions are drawn with replacement, their sums are added up, and the function is
applied (Koehn 2004 for BLEU; clusters since instances of one instruction are no independent draws). Before and after
are resampled alike, so their difference has an interval of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plaudit.wire.base import ResponseModel
from plaudit_trainer.tune.data import normalised

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of one held-out row.

    Args:
        cluster: rows of one cluster are resampled together.
        nats: −log P of the reference response, the end token included.
        tokens: of that response.
        answer: what the model said; None where it was not asked.
    """

    cluster: str
    nats: float
    tokens: int
    reference: str
    is_classification: bool
    answer: str | None


class Figure(ResponseModel):
    """A figure with its 95 % interval and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int


class Comparison(ResponseModel):
    """One measure on the same rows before and after. `change` is after − before; of perplexity, after / before."""

    before: Figure
    after: Figure
    change: Figure


@dataclass(frozen=True, slots=True)
class _Measure:
    """Sums of each row, and the figure they make."""

    wanted: Callable[[Outcome], bool]
    sums: Callable[[Sequence[Outcome]], Floats]
    figure: Callable[[Floats], float]
    is_ratio: bool = False


def compare(before: Sequence[Outcome], after: Sequence[Outcome], seed: int = 0) -> dict[str, Comparison]:
    """All measures that there are rows for, by name: `accuracy`, `bleu`, `chrf`, `perplexity`.

    Args:
        before, after: outcomes of the same rows in the same order.
    """
    found = {name: _compared(measure, before, after, seed) for name, measure in _measures().items()}
    return {name: comparison for name, comparison in found.items() if comparison is not None}


def is_match(answer: str, reference: str) -> bool:
    """Exact match, but for case, spaces and closing punctuation."""
    return normalised(answer) == normalised(reference)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927)."""
    share, squared = hits / n, _Z**2
    centre = (share + squared / (2 * n)) / (1 + squared / n)
    reach = _Z / (1 + squared / n) * math.sqrt(share * (1 - share) / n + squared / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _measures() -> dict[str, _Measure]:
    from sacrebleu.metrics import BLEU, CHRF

    return {
        "accuracy": _Measure(_is_label, _hits, lambda total: total[0] / total[1]),
        "bleu": _Measure(_is_prose, _segments(BLEU()), _corpus_score(BLEU())),
        "chrf": _Measure(_is_prose, _segments(CHRF()), _corpus_score(CHRF())),
        "perplexity": _Measure(lambda row: True, _nats, lambda total: math.exp(total[0] / total[1]), is_ratio=True),
    }


def _compared(measure: _Measure, before: Sequence[Outcome], after: Sequence[Outcome], seed: int) -> Comparison | None:
    places = [place for place, row in enumerate(before) if measure.wanted(row)]
    if not places:
        return None
    old, new = [before[place] for place in places], [after[place] for place in places]
    draws = _draws([row.cluster for row in old], seed)
    (first, firsts), (second, seconds) = (_resampled(measure, rows, draws) for rows in (old, new))
    n = len(places)
    changes = seconds / firsts if measure.is_ratio else seconds - firsts
    change = second / first if measure.is_ratio else second - first
    figures = [_figure(value, drawn, n) for value, drawn in ((first, firsts), (second, seconds), (change, changes))]
    if measure.sums is _hits:
        figures[:2] = [_at_least_wilson(figure) for figure in figures[:2]]
    return Comparison(before=figures[0], after=figures[1], change=figures[2])


def _draws(clusters: Sequence[str], seed: int) -> Floats:
    """(RESAMPLES, rows): how often each row is in each resample; rows of one cluster alike."""
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    times = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=RESAMPLES)
    return times[:, [names[name] for name in clusters]].astype(float)


def _resampled(measure: _Measure, rows: Sequence[Outcome], draws: Floats) -> tuple[float, Floats]:
    sums = measure.sums(rows)
    return measure.figure(sums.sum(axis=0)), np.array([measure.figure(total) for total in draws @ sums])


def _figure(value: float, drawn: Floats, n: int) -> Figure:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value=value, low=float(low), high=float(high), n=n)


def _at_least_wilson(figure: Figure) -> Figure:
    """A bootstrap of nothing but hits, or of few rows, says that it is certain; Wilson's interval never does."""
    low, high = wilson(round(figure.value * figure.n), figure.n)
    return figure.model_copy(update={"low": min(figure.low, low), "high": max(figure.high, high)})


def _is_label(row: Outcome) -> bool:
    return row.answer is not None and row.is_classification


def _is_prose(row: Outcome) -> bool:
    return row.answer is not None and not row.is_classification


def _hits(rows: Sequence[Outcome]) -> Floats:
    return np.array([[is_match(row.answer or "", row.reference), 1.0] for row in rows], dtype=float)


def _nats(rows: Sequence[Outcome]) -> Floats:
    return np.array([[row.nats, row.tokens] for row in rows], dtype=float)


def _segments(metric: Any) -> Callable[[Sequence[Outcome]], Floats]:
    """sacreBLEU's own statistics of each segment, which its significance tests resample too."""

    def sums(rows: Sequence[Outcome]) -> Floats:
        answers, references = [row.answer or "" for row in rows], [row.reference for row in rows]
        return np.array(metric._extract_corpus_statistics(answers, [references]), dtype=float)

    return sums


def _corpus_score(metric: Any) -> Callable[[Floats], float]:
    def figure(total: Floats) -> float:
        return float(metric._compute_score_from_stats([int(count) for count in total.round()]).score)

    return figure
