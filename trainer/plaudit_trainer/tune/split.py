"""Which examples are held out: whole clusters of instructions, so that nothing held out was trained on in other words.

Two instructions are in one cluster where their sets of words have a Jaccard similarity of at least `SAME`, directly
or by way of others. Which clusters are held out follows from a hash of their words and the seed: the same on every
machine, in whatever order the rows come.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit_trainer.tune.data import BadData, Example, normalised

SAME = 0.8
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Split:
    """Examples by side, with the cluster each held-out one belongs to (for intervals)."""

    train: list[Example]
    heldout: list[Example]
    clusters: list[str]
    """Of `heldout`, in its order."""


def split(examples: Sequence[Example], share: float, seed: int) -> Split:
    """Hold out about `share` of the examples, of classification and of other tasks alike.

    Raises:
        BadData: there are too few different instructions to hold one out.
    """
    name_of = clusters([e.instruction for e in examples])
    members: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        members[name_of[example.instruction]].append(example)
    held: set[str] = set()
    for kind in (True, False):
        sizes = {name: len(group) for name, group in members.items() if _is_classification(group) is kind}
        held |= _held_out(sizes, share, seed)
    if not held or len(held) == len(members):
        raise BadData(
            f"the {len(examples)} examples have {len(members)} different instructions (those that share four fifths "
            "of their words count as one); at least 2 of one kind are needed to train on one and judge by another"
        )
    train = [e for e in examples if name_of[e.instruction] not in held]
    heldout = [e for name in sorted(held, key=lambda n: _hash(seed, n)) for e in members[name]]
    return Split(train, heldout, [name_of[e.instruction] for e in heldout])


def clusters(instructions: Sequence[str]) -> dict[str, str]:
    """The cluster of each instruction, named by the hash of its first member's words.

    A set similarity join with prefix filtering (Chaudhuri, Ganti & Kaushik 2006): two sets with Jaccard similarity of
    at least t share a word among the |s| − ⌈t·|s|⌉ + 1 rarest of each, so only those are compared.
    """
    words = {text: _words(text) for text in instructions}
    # By size, then by content: a smaller set is always met first, and the order of the rows does not matter.
    sets = sorted(set(words.values()), key=lambda s: (len(s), sorted(s)))
    joined = list(range(len(sets)))
    for low, high in _alike(sets):
        first, second = sorted((_root(joined, low), _root(joined, high)))
        joined[second] = first
    names = {s: _hash(0, " ".join(sorted(sets[_root(joined, index)])))[:16] for index, s in enumerate(sets)}
    return {text: names[s] for text, s in words.items()}


def _alike(sets: Sequence[frozenset[str]]) -> list[tuple[int, int]]:
    """Pairs of sets, given by ascending size, with a Jaccard similarity of at least SAME."""
    count = Counter(word for s in sets for word in s)
    seen: dict[str, list[int]] = defaultdict(list)
    pairs = []
    for index, s in enumerate(sets):
        rarest = sorted(s, key=lambda word: (count[word], word))[: len(s) - math.ceil(SAME * len(s)) + 1]
        for other in sorted({o for word in rarest for o in seen[word]}):
            shared = len(s & sets[other])
            if shared >= SAME * (len(s) + len(sets[other]) - shared):
                pairs.append((other, index))
        for word in rarest:
            seen[word].append(index)
    return pairs


def _root(joined: list[int], index: int) -> int:
    while joined[index] != index:
        joined[index] = joined[joined[index]]
        index = joined[index]
    return index


def _words(text: str) -> frozenset[str]:
    plain = normalised(text)
    return frozenset(_WORD.findall(plain) or [plain])


def _is_classification(group: Sequence[Example]) -> bool:
    return 2 * sum(e.is_classification for e in group) > len(group)


def _held_out(sizes: Mapping[str, int], share: float, seed: int) -> set[str]:
    """Clusters in the order of their hashes, as long as they fit into the share; at least one where there are two."""
    if len(sizes) < 2:
        return set()
    budget = share * sum(sizes.values())
    taken: set[str] = set()
    for name in sorted(sizes, key=lambda n: _hash(seed, n)):
        if sizes[name] <= budget:
            taken.add(name)
            budget -= sizes[name]
    return taken or {min(sizes, key=lambda n: (sizes[n], _hash(seed, n)))}


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()
