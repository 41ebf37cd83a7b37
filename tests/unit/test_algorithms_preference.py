"""KTO and DPO: TRL is given the right rows, its losses are the papers', and it leaves nothing behind."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit_trainer import algorithms
from plaudit_trainer.algorithms import preference, trl_loop
from plaudit_trainer.algorithms.base import Lesson
from plaudit_trainer.algorithms.preference import Opinion
from plaudit_trainer.batches import Pair, Single, Tokens
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from tests.support.tiny_lessons import lesson_of
from tests.support.tiny_models import END, save_tiny_base, stir, tiny_backbone, tiny_config
from tests.support.tiny_votes import Quiet

BETA = 0.3
# Of unlike lengths, so that TRL pads; END is the padding token too, and the second ends with two of them.
LONG: Tokens = ((5, 6, 7), (8, 9, 10, 11, 12, 13, 14, END))
SHORT: Tokens = ((9, 8), (15, END, END))
MIDDLE: Tokens = ((5, 6, 7), (21, 22, END))
OTHER: Tokens = ((9, 8), (33, 34, 35, 36))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def moved() -> Backbone:
    """A backbone whose policy has left its parent."""
    backbone = tiny_backbone()
    stir(backbone, REFERENCE, seed=1)
    stir(backbone, POLICY, seed=2)
    return backbone


def single(tokens: Tokens, label: float, weight: float = 1.0) -> Single:
    return Single(str(tokens), tokens, label, weight, frozenset(["u"]), "c")


def pair(chosen: Tokens, rejected: Tokens, weight: float = 1.0) -> Pair:
    return Pair("comparison", chosen, rejected, weight, frozenset(["u"]), "c")


def log_ratio(backbone: Backbone, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """log π/π_ref of an answer on its own: no batch, so no padding."""
    encoded = backbone.encode([Exchange(tuple(prompt), tuple(answer))])
    with backbone.using(POLICY):
        policy = backbone.all_logprobs(encoded, [1.0])[0].sum().item()
    with backbone.using(REFERENCE):
        return policy - backbone.all_logprobs(encoded, [1.0])[0].sum().item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def first_step(
    name: str, backbone: Backbone, singles: list[Single], pairs: list[Pair], *, base: Path, folder: Path, **changes: Any
) -> dict[str, float]:
    """TRL's figures of its first step over all of these."""
    config = tiny_config(
        algorithm=name,
        preference_beta=BETA,
        preference_epochs=1,
        minibatch=16,
        min_pairs=2,
        heldout_share=1e-9,
        kl_ceiling=1e9,
        **changes,
    )
    start = lesson_of(tiny_backbone(), base, folder, config, count=8)
    lesson = replace(start, backbone=backbone, batch=replace(start.batch, singles=singles, pairs=pairs))
    reporter = Quiet()
    algorithms.chosen(config).train(lesson, reporter, config)
    return reporter.steps[0]


# The losses


def test_the_loss_of_dpo_is_the_papers(moved: Backbone, base: Path, tmp_path: Path) -> None:
    pairs = [pair(LONG, MIDDLE), pair(SHORT, OTHER), pair(MIDDLE, (LONG[0], SHORT[1]))]
    margins = [log_ratio(moved, *p.chosen) - log_ratio(moved, p.chosen[0], p.rejected[1]) for p in pairs]
    expected = sum(-math.log(sigmoid(BETA * m)) for m in margins) / len(pairs)
    assert first_step("dpo", moved, [], pairs, base=base, folder=tmp_path)["dpo/loss"] == pytest.approx(
        expected, abs=1e-5
    )


def test_padding_changes_no_loss_though_it_is_the_end_token(moved: Backbone, base: Path, tmp_path: Path) -> None:
    """With an answer of many tokens beside it, the loss of the short ones is what it is without."""
    wide = pair(((5,), tuple(range(3, 40))), ((5,), (7, END)))
    short = [pair(SHORT, OTHER), pair(MIDDLE, ((5, 6, 7), (40, END)))]
    start = {n: w.detach().clone() for n, w in moved.adapter(POLICY).items()}
    losses = []
    for pairs in (short, [*short, wide], [wide, wide]):
        with torch.no_grad():
            for n, w in moved.adapter(POLICY).items():
                w.copy_(start[n])
        losses.append(first_step("dpo", moved, [], pairs, base=base, folder=tmp_path)["dpo/loss"])
    assert 3 * losses[1] == pytest.approx(2 * losses[0] + losses[2], abs=3e-5)


def test_the_loss_of_kto_is_the_papers_with_its_weights(moved: Backbone, base: Path, tmp_path: Path) -> None:
    singles = [single(LONG, 1.0, 2.0), single(SHORT, 0.0), single(MIDDLE, 1.0, 2.0), single(OTHER, 0.0)]
    stir(moved, POLICY, seed=13)  # likes the mismatched answers better than its parent does
    config = tiny_config()
    examples = preference.opinions(singles, [])
    rows = preference.opinion_rows(moved, examples, 16, config)
    mismatched = [log_ratio(moved, r["prompt_ids"], r["KL_completion_ids"]) for r in rows]
    z = max(0.0, sum(mismatched) / len(rows))
    assert z > 0  # or the estimate would not be tested
    weights = preference.class_weights(examples)
    assert weights == pytest.approx({"desirable_weight": 4 / 3, "undesirable_weight": 2 / 3})
    parts = []
    for s in singles:
        r = log_ratio(moved, *s.tokens)
        up, down = weights["desirable_weight"], weights["undesirable_weight"]
        parts.append(up * (1 - sigmoid(BETA * (r - z))) if s.label == 1 else down * (1 - sigmoid(BETA * (z - r))))
    step = first_step("kto", moved, singles, [], base=base, folder=tmp_path)
    assert step["kto/kl_estimate"] == pytest.approx(z, abs=1e-4)
    assert step["kto/loss"] == pytest.approx(sum(parts) / len(parts), abs=1e-5)


def test_small_passes_add_up_to_the_same_step(moved: Backbone, base: Path, tmp_path: Path) -> None:
    """A token budget that holds one pair at a time changes memory, not the loss."""
    pairs = [pair(LONG, MIDDLE), pair(SHORT, OTHER), pair(MIDDLE, (LONG[0], SHORT[1])), pair(OTHER, SHORT)]
    start = {n: w.detach().clone() for n, w in moved.adapter(POLICY).items()}
    losses, moves = [], []
    for budget in (4096, 64):
        with torch.no_grad():
            for n, w in moved.adapter(POLICY).items():
                w.copy_(start[n])
        longest = 2 * max(len(p.chosen[0]) + max(len(p.chosen[1]), len(p.rejected[1])) for p in pairs)
        moved.token_budget = budget
        step = first_step("dpo", moved, [], pairs, base=base, folder=tmp_path, token_budget=budget)
        losses.append(step["dpo/loss"])
        moves.append(torch.cat([(w - start[n]).flatten() for n, w in moved.adapter(POLICY).items()]))
    assert 64 // longest < len(pairs)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(moves[0], moves[1], atol=1e-5, rtol=1e-3)


# The rows


def test_rows_hold_the_very_tokens_that_the_engine_drew(moved: Backbone) -> None:
    rows = preference.preference_rows(moved, [pair(LONG, SHORT)], tiny_config())
    assert [rows[0][c] for c in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
        list(LONG[0]),
        list(LONG[1]),
        list(SHORT[1]),
    ]
    assert rows[0]["ref_chosen_logps"] == preference.reference_sums(moved, [LONG])[0]
    assert rows[0]["ref_rejected_logps"] == preference.reference_sums(moved, [(LONG[0], SHORT[1])])[0]


def test_ktos_neighbours_are_those_of_the_same_pass_and_nobody_is_their_own(moved: Backbone) -> None:
    answers = [((3,), (4 + i, END)) for i in range(9)]
    examples = [Opinion(t, i % 2 == 0, 1.0, single(t, 1.0)) for i, t in enumerate(answers)]
    rows = preference.opinion_rows(moved, examples, 4, tiny_config())
    assert len(rows) == 8  # the ninth would be alone in its pass
    for start in (0, 4):
        own = [r["completion_ids"] for r in rows[start : start + 4]]
        assert [r["KL_completion_ids"] for r in rows[start : start + 4]] == [own[-1], *own[:-1]]


def test_opinions_are_singles_and_both_sides_of_pairs_as_far_as_they_lean() -> None:
    singles = [single(LONG, 1.0), single(SHORT, 0.25, 2.0), single(MIDDLE, 0.5)]
    found = preference.opinions(singles, [pair(OTHER, MIDDLE, 3.0)])
    assert [(o.tokens, o.liked, o.weight) for o in found] == [
        (LONG, True, 1.0),
        (SHORT, False, 1.0),  # half as sure, twice the weight
        (OTHER, True, 3.0),
        (MIDDLE, False, 3.0),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_examples_of_equal_weight_come_once_each(seed: int) -> None:
    pairs = [pair(LONG, ((5, 6, 7), (i,)), 0.37) for i in range(3, 33)]
    assert preference._drawn(pairs, random.Random(seed)) == pairs


def test_examples_come_as_often_as_they_weigh() -> None:
    heavy, light, none = pair(LONG, MIDDLE, 3.0), pair(SHORT, OTHER, 1.0), pair(OTHER, SHORT, 0.0)
    drawn = [p for seed in range(400) for p in preference._drawn([heavy, light, none], random.Random(seed))]
    assert len(drawn) == pytest.approx(1200, abs=3)
    assert drawn.count(heavy) / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert none not in drawn


# Nothing is left behind


class Stops(Quiet):
    def step(self, step: int, metrics: dict[str, float]) -> None:
        raise ConnectionError("the lease is lost")


def state_of(backbone: Backbone) -> dict[str, Any]:
    model = backbone.model
    return {
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "own": set(model.__dict__),
        "grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "adapter": backbone.switch.active,
        "random": (random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads()),
    }


@pytest.mark.parametrize("name", ["kto", "dpo"])
@pytest.mark.parametrize("reporter", [Quiet, Stops])
def test_the_model_is_handed_back_as_it_was(name: str, reporter: type[Quiet], base: Path, tmp_path: Path) -> None:
    backbone, config = tiny_backbone(), tiny_config(algorithm=name, preference_epochs=1)
    lesson: Lesson = lesson_of(backbone, base, tmp_path, config, count=32, each=4)
    before = state_of(backbone)
    try:
        algorithms.chosen(config).train(lesson, reporter(), config)
    except ConnectionError:
        assert reporter is Stops
    else:
        assert reporter is Quiet
    assert state_of(backbone) == before
    assert not any(m.training for m in backbone.model.modules())
    assert list(tmp_path.iterdir()) == []


def test_nobody_is_told(monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path, capsys: Any) -> None:
    """TRL reports runs to its makers, and prints; both are off."""
    told: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *args, **_: told.append(args))
    config = tiny_config(algorithm="kto", preference_epochs=1)
    algorithms.chosen(config).train(lesson_of(tiny_backbone(), base, tmp_path, config, count=16), Quiet(), config)
    assert told == []
    assert capsys.readouterr().out == ""


def test_trl_still_has_the_steps_that_are_replaced() -> None:
    """A new version of TRL that renames one of them would tokenise, or take another reference, or tell."""
    for trainer in (trl_loop._Dpo, trl_loop._Kto):
        for name in ("_prepare_dataset", "_precompute_ref_logps", "_send_telemetry"):
            assert any(name in vars(parent) for parent in trainer.__mro__ if parent.__module__.startswith("trl."))
