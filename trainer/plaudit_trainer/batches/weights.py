"""How much each example weighs: classes in balance, no rater and no crowd of new accounts heavier than allowed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from plaudit_trainer.batches.examples import Example, Single

_MAX_CLASS_WEIGHT = 4.0
_ROUNDS = 100

E = TypeVar("E", bound=Example)


def balanced(singles: Sequence[Single]) -> list[Single]:
    """Equal total weight for up- and down-votes, the rarer class lifted at most fourfold."""
    up = sum(s.weight for s in singles if s.label > 0.5)
    down = sum(s.weight for s in singles if s.label <= 0.5)
    if not up or not down:
        return list(singles)
    half = (up + down) / 2
    factors = {True: min(half / up, _MAX_CLASS_WEIGHT), False: min(half / down, _MAX_CLASS_WEIGHT)}
    return [replace(s, weight=s.weight * factors[s.label > 0.5]) for s in singles]


@dataclass(frozen=True, slots=True)
class Caps:
    """A factor for each rater, and the shares of the weight that follow from them."""

    factors: Mapping[str, float]
    heaviest_share: float
    young_share: float

    def factor(self, users: Collection[str]) -> float:
        """For an example of these raters: their mean."""
        return sum(self.factors[u] for u in users) / len(users)

    def applied(self, examples: Sequence[E]) -> list[E]:
        """The examples, weighing what they may."""
        return [replace(e, weight=e.weight * self.factor(e.users)) for e in examples]


def caps(examples: Sequence[Example], *, user_share: float, young: Collection[str], young_share: float) -> Caps:
    """Factors such that no rater holds more than `user_share`, and young ones together no more than `young_share`.

    An example of several raters is held by each in equal parts. Fewer than 1/`user_share` raters cannot all be below
    it: there the limit is twice an equal share. Old accounts are never scaled for the young ones' sake, so that where
    all are young nothing is left.

    Args:
        examples: with the weights they have so far.
        user_share: 0 for no cap.
        young_share: 1 for no cap.
    """
    held: Counter[str] = Counter()
    for example in examples:
        for user in example.users:
            held[user] += example.weight / len(example.users)  # type: ignore[assignment]
    weights: dict[str, float] = dict(held)
    limit = 1.0 if not user_share else user_share if user_share * len(held) >= 1 else min(1.0, 2 / max(1, len(held)))
    for _ in range(_ROUNDS):  # each cap lowers the total, which may lift a rater above the other: until both hold
        before = dict(weights)
        weights = _young_capped(_user_capped(weights, limit), young, young_share)
        if all(weights[u] > before[u] * (1 - 1e-9) for u in weights):
            break
    total = sum(weights.values())
    shares = {user: weight / total if total else 0.0 for user, weight in weights.items()}
    return Caps(
        factors={user: weights[user] / held[user] if held[user] else 1.0 for user in held},
        heaviest_share=max(shares.values(), default=0.0),
        young_share=sum(share for user, share in shares.items() if user in young),
    )


def _user_capped(weights: Mapping[str, float], limit: float) -> dict[str, float]:
    """Each at most c, the largest number with c ≤ limit · Σ min(w, c): sorted, the first k exceed it."""
    falling = sorted(weights.values(), reverse=True)
    rest = sum(falling)
    for over, weight in enumerate(falling):
        room = 1 - limit * over  # Σ min(w, c) = over · c + rest, so c = limit · rest / room
        if room <= 1e-9:
            break
        ceiling = limit * rest / room
        if weight <= ceiling * (1 + 1e-9):
            return {user: min(w, ceiling) for user, w in weights.items()} if over else dict(weights)
        rest -= weight
    least = falling[-1] if falling else 0.0
    return {user: min(w, least) for user, w in weights.items()}


def _young_capped(weights: Mapping[str, float], young: Collection[str], share: float) -> dict[str, float]:
    theirs = sum(w for user, w in weights.items() if user in young)
    allowed = share / (1 - share) * (sum(weights.values()) - theirs) if share < 1 else theirs
    factor = allowed / theirs if theirs > allowed else 1.0
    return {user: w * factor if user in young else w for user, w in weights.items()}
