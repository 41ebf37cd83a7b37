"""What a batch is made of: singles, pairs, trajectories."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from plaudit.wire.base import JsonObject

Encoder = Callable[[Sequence[JsonObject], str], "tuple[list[int], list[int]]"]
"""(messages, answer) → (prompt ids, response ids with the end-of-text token). For texts the engine did not draw."""

Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""(prompt ids, response ids)."""

PairSource = Literal["comparison", "correction", "regeneration", "votes"]
"""How it is known that one answer is better, strongest first."""


@dataclass(frozen=True, slots=True)
class Single:
    """A voted answer. `label` is the mean vote brought to [0, 1]; `users` are its raters."""

    response_id: str
    tokens: Tokens
    label: float
    weight: float
    users: frozenset[str]
    cluster: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer preferred to another on the same prompt."""

    source: PairSource
    chosen: Tokens
    rejected: Tokens
    weight: float
    users: frozenset[str]
    cluster: str


Example = Single | Pair


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An answer that may enter a PPO ratio: ids and sampling-time log-probabilities are exactly the engine's.

    Args:
        vote: its raters' mean vote in [−1, 1], None where nobody voted whose vote may count by itself.
    """

    tokens: Tokens
    logprobs: tuple[float, ...]
    temperature: float
    finish_reason: str | None
    has_stops: bool
    version: str
    vote: float | None
    cluster: str


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """What a leased batch says. `reason` names why it is not enough to learn from; None where it is.

    Args:
        messages: the prompts of its records, by prompt cluster.
        log: further prompts of the server's log, by prompt cluster; nobody rated their answers here.
        dropped: what was left out, by reason.
        heaviest_share: the largest share of the weight that one rater holds.
        young_share: the share of the weight that young accounts hold together.
    """

    singles: list[Single]
    pairs: list[Pair]
    trajectories: list[Trajectory]
    messages: dict[str, list[JsonObject]]
    dropped: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    log: dict[str, list[JsonObject]] = field(default_factory=dict)
    heaviest_share: float = 0.0
    young_share: float = 0.0

    @property
    def examples(self) -> list[Example]:
        """Singles, then pairs."""
        return [*self.singles, *self.pairs]

    def counts(self) -> dict[str, float]:
        """Figures for the run's metrics."""
        up = sum(s.label > 0.5 for s in self.singles)
        figures = {"singles": len(self.singles), "up": up, "down": len(self.singles) - up, "pairs": len(self.pairs)}
        figures |= {f"pairs_{source}": 0 for source in ("comparison", "correction", "regeneration", "votes")}
        for pair in self.pairs:
            figures[f"pairs_{pair.source}"] += 1
        figures |= {"trajectories": len(self.trajectories), "prompts": len(self.messages), "log_prompts": len(self.log)}
        figures |= {"raters": len({user for e in self.examples for user in e.users})}
        figures |= {f"dropped_{reason}": count for reason, count in self.dropped.items()}
        shares = {"heaviest_rater_share": self.heaviest_share, "young_share": self.young_share}
        return {f"batch/{name}": float(value) for name, value in (figures | shares).items()}


def cluster_of(messages: Sequence[JsonObject], prompt_key: str | None = None) -> str:
    """Prompts that differ only in case, spacing or punctuation are one cluster."""
    words = " ".join(re.findall(r"\w+", " ".join(str(m.get("content", "")) for m in messages).casefold()))
    return hashlib.sha256((words or prompt_key or "").encode()).hexdigest()[:16]
