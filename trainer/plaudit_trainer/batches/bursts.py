"""Quarantine: votes that share a phrase which raters brought in and which suddenly is everywhere.

Who plants a phrase must get it into answers: by asking for it, or by writing it. So the phrases looked at are those
that stand in what a rater wrote (prompt, correction, written answer) and again in what would be learnt from. A phrase
bursts where the share of this batch's answers that carry it lies more than six standard errors above the share in
earlier batches. The model's own habits, which change with every version, are in no prompt and burst nothing.

Earlier batches are remembered as counts of hashed phrases, without any text, beside the reward model.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from plaudit.wire.training import TrainingComparison, TrainingRecord

_FILE = "phrases.safetensors"
_SIZE = 2**18
_WORDS = 3
_BOUND_Z = 6.0
_FEWEST = 5
"""Carriers below which nothing is a burst."""
_KEPT_SHARE = 0.9
"""What of the memory is left after each batch: it spans about ten."""
_QUARANTINED_SHARE = 0.5
"""How much of a quarantined answer is remembered: with it a topic that stays is let in after some batches."""

Phrases = frozenset[int]


@dataclass(frozen=True, slots=True)
class PhraseHistory:
    """In how many earlier answers each hashed phrase stood, of how many; both fade."""

    counts_H: NDArray[np.float32]
    answers: float

    @classmethod
    def empty(cls) -> "PhraseHistory":
        """Of a trainer that has seen nothing yet. Nothing bursts against it."""
        return cls(np.zeros(_SIZE, dtype=np.float32), 0.0)

    @classmethod
    def load(cls, folder: Path | None) -> "PhraseHistory":
        """What `save` wrote there; empty where there is none."""
        if folder is None or not (folder / _FILE).is_file():
            return cls.empty()
        tensors = load_file(folder / _FILE)
        if tensors["counts"].shape != (_SIZE,):
            return cls.empty()
        return cls(tensors["counts"], float(tensors["answers"][0]))

    def save(self, folder: Path) -> None:
        """Write it below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"counts": self.counts_H, "answers": np.array([self.answers], dtype=np.float32)}, folder / _FILE)

    def after(self, carried: Sequence[Phrases], held: Sequence[bool]) -> "PhraseHistory":
        """With this batch's answers; `held` says which are in quarantine."""
        counts_H, answers = self.counts_H * np.float32(_KEPT_SHARE), self.answers * _KEPT_SHARE
        for phrases, is_held in zip(carried, held, strict=True):
            share = _QUARANTINED_SHARE if is_held else 1.0
            counts_H[list(phrases)] += share
            answers += share
        return PhraseHistory(counts_H, answers)


def of_record(record: TrainingRecord) -> Phrases:
    """Phrases of a record that its users brought in and that would be learnt from."""
    written = [v.correction for v in record.votes if v.correction]
    asked = [str(m.get("content", "")) for m in record.messages if m.get("role") == "user"]
    return (_phrases([record.content]) & _phrases(asked)) | _phrases(written)


def of_comparison(comparison: TrainingComparison) -> Phrases:
    """The same of a comparison."""
    sides = [(comparison.chosen_id, comparison.chosen_text), (comparison.rejected_id, comparison.rejected_text)]
    written = [text for response_id, text in sides if response_id is None]
    asked = [str(m.get("content", "")) for m in comparison.messages if m.get("role") == "user"]
    return (_phrases([text for _, text in sides]) & _phrases(asked)) | _phrases(written)


def _phrases(texts: Iterable[str]) -> Phrases:
    found = set()
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        runs = (words[i : i + _WORDS] for i in range(len(words) - _WORDS + 1))
        found |= {zlib.crc32(" ".join(run).encode()) % _SIZE for run in runs}
    return frozenset(found)


def quarantined(carried: Sequence[Phrases], history: PhraseHistory) -> list[bool]:
    """Of each answer, whether it carries a phrase that bursts against the history."""
    bursting = _bursting(carried, history)
    return [bool(phrases & bursting) for phrases in carried]


def _bursting(carried: Sequence[Phrases], history: PhraseHistory) -> Phrases:
    """Phrases whose share rose by z > 6: two proportions, pooled variance."""
    now, earlier = len(carried), history.answers
    if not earlier:
        return frozenset()
    found = Counter(phrase for phrases in carried for phrase in phrases)
    bursting = set()
    for phrase, count in found.items():
        before = float(history.counts_H[phrase])
        pooled = min(1.0, (count + before) / (now + earlier))
        error = (pooled * (1 - pooled) * (1 / now + 1 / earlier)) ** 0.5
        if count >= _FEWEST and count / now - before / earlier > _BOUND_Z * error:
            bursting.add(phrase)
    return frozenset(bursting)
