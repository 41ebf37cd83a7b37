"""Held-out parts share nothing with what is fitted on, and are spread evenly."""

from collections import Counter

from plaudit_trainer import batches
from plaudit_trainer.batches import Example, Pair, Single, Splits


def single(i: int, user: str, cluster: str, label: float | None = None) -> Single:
    label = float(i % 2) if label is None else label
    return Single(f"r{i}", ((1,), (i,)), label, 1.0, frozenset([user]), cluster)


def shared(examples: list[Example], made: Splits, *, raters: bool) -> int:
    """How many prompts (and raters) lie on both sides of a split."""
    both = 0
    for split in made.splits:
        assert not set(split.fit) & set(split.judge)
        sides = [
            {e.cluster for e in part} | {u for e in part for u in e.users if raters}
            for part in ([examples[i] for i in split.fit], [examples[i] for i in split.judge])
        ]
        both += len(sides[0] & sides[1])
    return both


def test_no_rater_and_no_prompt_lies_on_both_sides() -> None:
    examples: list[Example] = [single(i, f"u{i // 3}", f"c{i // 6}") for i in range(60)]
    made = batches.splits_of(examples, 4)
    assert made.unseen_raters and len(made.splits) == 4
    assert shared(examples, made, raters=True) == 0
    assert sorted(i for s in made.splits for i in s.judge) == list(range(60))


def test_every_fold_gets_its_share_of_ups_and_of_downs() -> None:
    examples: list[Example] = [single(i, f"u{i}", f"c{i}", float(i < 16)) for i in range(64)]
    for split in batches.splits_of(examples, 8).splits:
        counts = Counter(examples[i].label > 0.5 for i in split.judge)  # type: ignore[union-attr]
        assert (counts[True], counts[False]) == (2, 6)


def test_entangled_raters_and_prompts_are_held_out_both() -> None:
    """Everybody rates everything: one component. Judged is what is of an unseen rater on an unseen prompt."""
    examples: list[Example] = [single(i, f"u{i % 20}", f"c{i % 19}") for i in range(380)]
    made = batches.splits_of(examples, 8)
    assert made.unseen_raters
    assert shared(examples, made, raters=True) == 0
    assert sorted(i for s in made.splits for i in s.judge) == list(range(380))
    assert min(len(s.fit) for s in made.splits) > 0.5 * 380


def test_a_pair_of_two_raters_is_judged_only_where_both_are_unseen() -> None:
    pairs: list[Example] = [
        Pair("votes", ((1,), (i,)), ((1,), (-i,)), 1.0, frozenset([f"u{i % 12}", f"u{(i + 5) % 12}"]), f"c{i % 11}")
        for i in range(264)
    ]
    made = batches.splits_of(pairs, 8)
    assert made.unseen_raters and shared(pairs, made, raters=True) == 0


def test_one_rater_alone_is_judged_on_unseen_prompts_and_that_is_said() -> None:
    examples: list[Example] = [single(i, "one", f"c{i // 2}", float(i // 3 % 2)) for i in range(40)]
    made = batches.splits_of(examples, 4)
    assert not made.unseen_raters
    assert shared(examples, made, raters=False) == 0
    assert max(len(s.judge) for s in made.splits) <= 12


def test_a_prompt_held_out_once_is_held_out_in_every_batch() -> None:
    clusters = [f"{i:016x}" for i in range(400)]
    held = batches.heldout_clusters(clusters, 0.2)
    assert 50 < len(held) < 110
    assert batches.heldout_clusters(clusters[:100], 0.2) == held & set(clusters[:100])
