"""Each check of the gate passes what it should, refuses what it should, and tells figure, interval and bound."""

import pytest
import torch

from plaudit_trainer import gate
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Exchange
from plaudit_trainer.reward_model import Quality, RewardModel
from tests.support.tiny_models import END, stir, tiny_backbone

CONFIG = TrainerConfig()
GOOD = Quality(0.8, 0.7, 0.9, 0.75, 0.1, 64)


def prompts(before: float, after: float, count: int = 12, spread: float = 0.0) -> dict[str, gate.PromptFigures]:
    return {f"p{i}": ([before + spread * (i % 3 - 1)] * 2, [after - spread * (i % 3 - 1)] * 2) for i in range(count)}


def test_win_rate_counts_pairs_and_ties() -> None:
    check = gate.win_check({"a": ([1.0, 2.0], [2.0, 3.0])}, CONFIG)
    assert check.value == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert check.n == 2


def test_clear_wins_pass_and_a_coin_toss_does_not() -> None:
    assert gate.win_check(prompts(0.0, 1.0), CONFIG).passed
    assert not gate.win_check(prompts(1.0, 0.0), CONFIG).passed
    toss = {f"p{i}": ([0.0], [(-1.0) ** i]) for i in range(12)}
    check = gate.win_check(toss, CONFIG)
    assert check.value == pytest.approx(0.5)
    assert not check.passed
    assert check.low is not None and check.high is not None
    assert check.low < 0.4 and check.high > 0.6


def test_the_bound_of_the_win_rate_is_a_setting() -> None:
    toss = {f"p{i}": ([0.0], [(-1.0) ** i]) for i in range(40)}
    assert gate.win_check(toss, TrainerConfig(gate_win_rate=0.3)).passed


def test_kl_beyond_its_ceiling_fails() -> None:
    assert gate.kl_check([CONFIG.kl_ceiling - 1] * 5, CONFIG).passed
    assert not gate.kl_check([CONFIG.kl_ceiling + 1] * 5, CONFIG).passed


def test_growing_answers_fail_unless_allowed() -> None:
    assert gate.length_check(prompts(40, 44), CONFIG).passed
    check = gate.length_check(prompts(40, 50), CONFIG)
    assert not check.passed and check.value == pytest.approx(0.25)
    assert gate.length_check(prompts(40, 50), TrainerConfig(gate_length_growth=0.3)).passed
    assert gate.length_check(prompts(40, 10), CONFIG).passed  # shorter is allowed


def test_answers_that_no_longer_end_fail() -> None:
    assert gate.end_check(prompts(0.5, 0.4), CONFIG).passed
    assert not gate.end_check(prompts(0.5, 0.3), CONFIG).passed


def test_heads_at_odds_fail() -> None:
    assert gate.disagreement_check(prompts(0.2, 0.3), CONFIG).passed
    assert not gate.disagreement_check(prompts(0.2, 0.9), CONFIG).passed


def test_a_reward_model_below_its_bar_and_any_alarm_fail() -> None:
    assert gate.reward_check(GOOD, CONFIG).passed
    assert not gate.reward_check(Quality(0.55, 0.4, 0.7, 0.5, 0.1, 64), CONFIG).passed
    assert gate.alarm_check([]).passed
    check = gate.alarm_check(["the adapter is unchanged after training"])
    assert not check.passed and check.detail == "the adapter is unchanged after training"


def test_intervals_narrow_with_prompts_not_with_answers_to_one() -> None:
    def width(count: int, copies: int) -> float:
        figures = {f"p{i}": ([0.0] * copies, [(-1.0) ** i] * copies) for i in range(count)}
        check = gate.win_check(figures, CONFIG)
        assert check.low is not None and check.high is not None
        return check.high - check.low

    assert width(64, 1) < 0.7 * width(16, 1)
    assert width(16, 8) == pytest.approx(width(16, 1), abs=0.01)


def parents(count: int) -> list[Trajectory]:
    return [
        Trajectory(((5, 6, 7 + i % 4), (8, 9 + i, END)), (-1.0,) * 3, 1.0, "stop", False, "base", None, f"c{i % 4}")
        for i in range(count)
    ]


def test_the_whole_gate_on_a_model_that_did_not_move() -> None:
    """The same answers: ties everywhere, no growth, no KL. Only a win by luck is missing, and it is not invented."""
    backbone = tiny_backbone()
    judge = RewardModel.fresh(torch.randn(40, 64), CONFIG)
    olds = parents(8)
    report = gate.check(
        backbone, judge, olds, [Exchange(*t.tokens) for t in olds], alarms=[], quality=GOOD, config=CONFIG
    )
    values = {c.name: c.value for c in report.checks}
    assert values["win_rate"] == 0.5 and values["kl"] == 0 and values["length_growth"] == 0
    assert report.passed  # no worse than its parent, with certainty: the interval has no width
    assert [c.name for c in report.checks if c.n == 8] == [
        "win_rate", "kl", "length_growth", "end_of_text_change", "disagreement_growth",
    ]  # fmt: skip


def test_kl_is_measured_between_policy_and_reference() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    encoded = backbone.encode([Exchange(*t.tokens) for t in parents(4)])
    kls = gate.answer_kls(backbone, encoded)
    with backbone.using(POLICY):
        after = backbone.all_logprobs(encoded, [1.0] * 4)
    with backbone.using(REFERENCE):
        before = backbone.all_logprobs(encoded, [1.0] * 4)
    assert kls == pytest.approx([(a - b).sum().item() for a, b in zip(after, before, strict=True)], abs=1e-5)
    assert any(abs(k) > 0.01 for k in kls)


def test_without_heldout_answers_nothing_passes() -> None:
    judge = RewardModel.fresh(torch.randn(40, 64), CONFIG)
    report = gate.check(tiny_backbone(), judge, [], [], alarms=[], quality=GOOD, config=CONFIG)
    assert not report.passed
    assert any("held-out prompts" in line for line in report.refusals)
