"""Held out by clusters of instructions, never by row."""

import itertools
import random

import pytest

from plaudit_trainer.tune.data import BadData, Example
from plaudit_trainer.tune.split import SAME, clusters, split


def example(instruction: str, given: str = "", *, label: bool = False) -> Example:
    return Example((("user", f"{instruction} {given}"),), "x", instruction, label, "d:1")


def many(count: int, instances: int = 3, *, label: bool = False) -> list[Example]:
    kind = "sort" if label else "write"
    return [
        example(f"{kind} thing{i} other{i} more{i}", str(k), label=label)
        for i in range(count)
        for k in range(instances)
    ]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def test_the_instances_of_an_instruction_stay_together() -> None:
    parts = split(many(20), 0.2, 0)
    assert not {e.instruction for e in parts.train} & {e.instruction for e in parts.heldout}
    assert len(parts.train) + len(parts.heldout) == 60


def test_other_words_for_the_same_instruction_stay_together() -> None:
    pairs = [
        [
            example(f"please sort zoo{i} pets{i} by size{i}"),
            example(f"Sort zoo{i} pets{i} by size{i}!"),
        ]
        for i in range(10)
    ]
    parts = split(list(itertools.chain(*pairs)), 0.3, 1)
    assert len(parts.heldout) == 6
    for pair in pairs:
        assert len({e in parts.heldout for e in pair}) == 1


def test_the_share_is_kept_for_both_kinds() -> None:
    parts = split(many(50) + many(50, label=True), 0.2, 0)
    assert sum(e.is_classification for e in parts.heldout) == 30
    assert len(parts.heldout) == 60


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_neither_side_is_ever_empty(share: float) -> None:
    parts = split(many(2, 1), share, 0)
    assert len(parts.train) == len(parts.heldout) == 1


def test_it_is_the_same_in_any_order_and_another_with_another_seed() -> None:
    examples = many(30)
    shuffled = random.Random(3).sample(examples, len(examples))
    held = [
        {e.instruction for e in split(rows, 0.2, seed).heldout}
        for rows, seed in ((examples, 0), (shuffled, 0), (examples, 1))
    ]
    assert held[0] == held[1] != held[2]


def test_an_instruction_too_large_for_the_share_is_trained_on() -> None:
    parts = split(many(10, 1) + [example("one of a kind", str(k)) for k in range(90)], 0.2, 0)
    assert "one of a kind" not in {e.instruction for e in parts.heldout}
    assert len(parts.heldout) == 10


def test_clusters_are_named_for_each_heldout_row() -> None:
    parts = split(many(10), 0.2, 0)
    assert len(parts.clusters) == len(parts.heldout)
    named = {(e.instruction, name) for e, name in zip(parts.heldout, parts.clusters, strict=True)}
    assert len(named) == len(set(parts.clusters)) == 2


def test_too_few_instructions_are_an_error() -> None:
    with pytest.raises(BadData, match="the 4 examples have 1 different instructions"):
        split([example("same", str(k)) for k in range(4)], 0.2, 0)
    with pytest.raises(BadData, match="at least 2 of one kind"):
        split([example("one"), example("two", label=True)], 0.2, 0)


def test_clusters_are_those_of_comparing_every_pair() -> None:
    draw = random.Random(0)
    texts = list({" ".join(draw.sample("abcdefgh", draw.randint(1, 8))) for _ in range(300)})
    expected = {t: t for t in texts}
    for a, b in itertools.combinations(texts, 2):
        if len(words(a) & words(b)) >= SAME * len(words(a) | words(b)) and expected[a] != expected[b]:
            old, new = expected[a], expected[b]
            expected = {t: new if name == old else name for t, name in expected.items()}
    found = clusters(texts)
    assert len(set(expected.values())) > 5
    for a, b in itertools.combinations(texts, 2):
        assert (found[a] == found[b]) == (expected[a] == expected[b]), (a, b)


def test_an_instruction_without_words_is_one_of_its_own() -> None:
    assert len(set(clusters(["👍", "👎", "+ -"]).values())) == 3
