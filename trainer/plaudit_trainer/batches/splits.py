"""What is held out: votes to judge a reward model on, prompts to judge a policy on."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit_trainer.batches.examples import Example, Pair

_CROSSED = 5
"""Groups of raters, and of prompts, where the two are entangled: 64 % of the votes are left to fit on."""
_FEWEST_RATERS = 8
"""Raters below which groups of them would leave too little to fit on."""


@dataclass(frozen=True, slots=True)
class Split:
    """Places of examples to fit on and to judge on."""

    fit: list[int]
    judge: list[int]


@dataclass(frozen=True, slots=True)
class Splits:
    """Splits for cross-validation, and whether what is judged shares no rater with what was fitted (never a prompt)."""

    splits: list[Split]
    unseen_raters: bool


def splits_of(examples: Sequence[Example], count: int, seed: int = 0) -> Splits:
    """Splits such that no prompt cluster, and where possible no rater, lies on both sides of one.

    Connected raters and prompts stay together. Where they are so entangled that one component holds more than a
    quarter of the examples, raters and prompts are grouped apart: judged is what lies in one group of each, fitted on
    what lies in neither. With fewer than eight raters that would leave nothing to fit on: then only the prompts are
    unseen, and `unseen_raters` says so.
    """
    roots = _components(examples)
    if max(Counter(roots).values(), default=0) <= len(examples) / 4:
        return Splits(_by_fold(folds_by(roots, examples, count, seed), count), unseen_raters=True)
    raters = sorted({user for e in examples for user in e.users})
    if len(raters) >= _FEWEST_RATERS and (crossed := _crossed(examples, raters, seed)):
        return Splits(crossed, unseen_raters=True)
    folds = folds_by([e.cluster for e in examples], examples, count, seed)
    return Splits(_by_fold(folds, count), unseen_raters=False)


def _by_fold(fold: Sequence[int], count: int) -> list[Split]:
    made = [
        Split([i for i, f in enumerate(fold) if f != k], [i for i, f in enumerate(fold) if f == k])
        for k in range(count)
    ]
    return [split for split in made if split.fit and split.judge]


def _crossed(examples: Sequence[Example], raters: Sequence[str], seed: int) -> list[Split]:
    order = sorted(raters, key=lambda rater: _shuffled(rater, seed))
    group = {rater: place % _CROSSED for place, rater in enumerate(order)}
    of_prompt = folds_by([e.cluster for e in examples], examples, _CROSSED, seed)
    of_raters = [{group[user] for user in e.users} for e in examples]
    splits = []
    for a in range(_CROSSED):
        for b in range(_CROSSED):
            judge = [i for i, g in enumerate(of_raters) if g == {a} and of_prompt[i] == b]
            fit = [i for i, g in enumerate(of_raters) if a not in g and of_prompt[i] != b]
            if judge and fit:
                splits.append(Split(fit, judge))
    return splits


def folds_by(keys: Sequence[str], examples: Sequence[Example], count: int, seed: int = 0) -> list[int]:
    """A fold for each example such that examples of one key share it.

    Up-votes, down-votes and pairs are each spread evenly, as far as groups allow: a fold short of up-votes leaves too
    many to fit on, which pushes its scores up exactly where few ups are, and the pooled AUROC down.
    """
    kinds = ["pair" if isinstance(e, Pair) else "up" if e.label > 0.5 else "down" for e in examples]
    totals, groups = Counter(kinds), defaultdict[str, Counter[str]](Counter)
    for key, kind in zip(keys, kinds, strict=True):
        groups[key][kind] += 1
    held: list[Counter[str]] = [Counter() for _ in range(count)]
    fold: dict[str, int] = {}
    for key in sorted(groups, key=lambda key: (-groups[key].total(), _shuffled(key, seed))):
        crowded = [sum(held[f][kind] * n / totals[kind] for kind, n in groups[key].items()) for f in range(count)]
        fold[key] = min(range(count), key=lambda f: (crowded[f], held[f].total()))
        held[fold[key]] += groups[key]
    return [fold[key] for key in keys]


def _components(examples: Sequence[Example]) -> list[str]:
    above: dict[str, str] = {}

    def root(node: str) -> str:
        while above.setdefault(node, node) != node:
            node = above[node]
        return node

    for example in examples:
        for user in example.users:
            above[root(f"user {user}")] = root(f"prompt {example.cluster}")
    return [root(f"prompt {example.cluster}") for example in examples]


def _shuffled(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def heldout_clusters(clusters: Sequence[str], share: float, seed: int = 0) -> set[str]:
    """Prompt clusters kept out of the policy's training. By hash: a prompt held out once is held out in every run."""
    threshold = int(share * 16**8)
    return {c for c in clusters if int(_shuffled(c, seed)[:8], 16) < threshold}
