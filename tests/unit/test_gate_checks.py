"""Each check of the gate passes what it should, refuses what it should, and tells figure, interval and bound."""

import random
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import sem, t

from plaudit.wire.refusals import refuses
from plaudit.wire.versions import GateReport
from plaudit_trainer import gate, gate_checks
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.quality import Figure, Quality
from plaudit_trainer.reward_model import RewardModel
from plaudit_trainer.rewarding import Independent, Rewards
from tests.support.tiny_models import END, stir, tiny_backbone

CONFIG = TrainerConfig()


def quality(auroc: float, *, unseen_raters: bool = True) -> Quality:
    return Quality(
        Figure(auroc, auroc - 0.1, auroc + 0.1), Figure(0.7, 0.6, 0.8), Figure(0.1, 0.0, 0.2), 64, unseen_raters
    )


GOOD = quality(0.8)


def prompts(before: float, after: float, count: int = 12, spread: float = 0.0) -> dict[str, gate_checks.PromptFigures]:
    return {f"p{i}": ([before + spread * (i % 3 - 1)] * 2, [after - spread * (i % 3 - 1)] * 2) for i in range(count)}


def test_the_win_rate_is_that_of_two_thumbs_of_which_ties_count_half() -> None:
    """With chances p and q of a 👍 each: q (1 − p) + ½ (p q + (1 − p) (1 − q)) = ½ + (q − p) / 2."""
    check = gate_checks.win_check("win_rate", {"a": ([0.2, 0.4], [0.6, 0.7])}, CONFIG)
    p, q = 0.3, 0.65
    assert check.value == pytest.approx(q * (1 - p) + 0.5 * (p * q + (1 - p) * (1 - q)))
    assert check.n == 2


def test_nothing_is_won_where_both_are_liked_anyway() -> None:
    """By their scores, which have no bound, three of four of these prompts were won; users would like one fewer."""
    liked = {"a": ([0.95], [0.96]), "b": ([0.94], [0.96]), "c": ([0.96], [0.97]), "d": ([0.9], [0.1])}
    value = gate_checks.win_check("win_rate", liked, CONFIG).value
    assert value is not None and value < 0.42


def test_clear_wins_pass_and_a_coin_toss_does_not() -> None:
    assert gate_checks.win_check("win_rate", prompts(0.0, 1.0), CONFIG).passed
    assert not gate_checks.win_check("win_rate", prompts(1.0, 0.0), CONFIG).passed
    toss = {f"p{i}": ([0.0], [(-1.0) ** i]) for i in range(12)}
    check = gate_checks.win_check("win_rate", toss, CONFIG)
    assert check.value == pytest.approx(0.5)
    assert not check.passed
    assert check.low is not None and check.high is not None
    assert check.low < 0.4 and check.high > 0.6


def test_the_bound_of_the_win_rate_is_a_setting() -> None:
    toss = {f"p{i}": ([0.0], [(-1.0) ** i]) for i in range(40)}
    assert gate_checks.win_check("win_rate", toss, TrainerConfig(gate_win_rate=0.3)).passed


def test_a_bound_of_zero_refuses_nothing_however_few_the_prompts() -> None:
    three = {"a": ([0.0], [1.0]), "b": ([0.0], [-1.0]), "c": ([0.0], [-1.0])}
    check = gate_checks.win_check("win_rate", three, TrainerConfig(gate_win_rate=0.0))
    assert check.passed
    assert (check.low, check.high) == (0.0, 1.0)


def test_kl_beyond_its_ceiling_fails() -> None:
    assert gate_checks.kl_check(prompts(0, CONFIG.kl_ceiling - 1), CONFIG).passed
    assert not gate_checks.kl_check(prompts(0, CONFIG.kl_ceiling + 1), CONFIG).passed


def test_growing_answers_fail_unless_allowed() -> None:
    assert gate_checks.length_check(prompts(40, 44), CONFIG).passed
    check = gate_checks.length_check(prompts(40, 50), CONFIG)
    assert not check.passed and check.value == pytest.approx(0.25)
    assert gate_checks.length_check(prompts(40, 50), TrainerConfig(gate_length_growth=0.3)).passed
    assert gate_checks.length_check(prompts(40, 10), CONFIG).passed  # shorter is allowed


def test_answers_that_no_longer_end_fail() -> None:
    assert gate_checks.end_check(prompts(0.5, 0.4), CONFIG).passed
    assert not gate_checks.end_check(prompts(0.5, 0.3), CONFIG).passed


def test_heads_at_odds_fail() -> None:
    assert gate_checks.disagreement_check(prompts(0.2, 0.3), CONFIG).passed
    assert not gate_checks.disagreement_check(prompts(0.2, 0.9), CONFIG).passed


def test_a_reward_model_below_its_bar_and_any_alarm_fail() -> None:
    assert gate_checks.reward_check(GOOD, CONFIG).passed
    assert not gate_checks.reward_check(quality(0.55), CONFIG).passed
    assert gate_checks.alarm_check([]).passed
    check = gate_checks.alarm_check(["the adapter is unchanged after training"])
    assert not check.passed and check.detail == "the adapter is unchanged after training"


def test_intervals_narrow_with_prompts_not_with_answers_to_one() -> None:
    def width(count: int, copies: int) -> float:
        figures = {f"p{i}": ([0.0] * copies, [(-1.0) ** i] * copies) for i in range(count)}
        check = gate_checks.win_check("win_rate", figures, CONFIG)
        assert check.low is not None and check.high is not None
        return check.high - check.low

    assert width(64, 1) < 0.7 * width(16, 1)
    assert width(16, 8) == pytest.approx(width(16, 1), abs=0.01)


def parents(count: int) -> list[Trajectory]:
    return [
        Trajectory(((5, 6, 7 + i % 4), (8, 9 + i, END)), (-1.0,) * 3, 1.0, "stop", False, "base", None, f"c{i % 4}")
        for i in range(count)
    ]


def decode(ids: Sequence[int]) -> str:
    return "I am sorry, but no." if 9 in ids else "Certainly."


def whole(
    olds: list[Trajectory],
    news: list[Exchange],
    independent: Independent | None = None,
    backbone: Backbone | None = None,
    config: TrainerConfig = CONFIG,
    *,
    logprob: float = -1.0,
) -> GateReport:
    judge = RewardModel.fresh(torch.randn(40, 128), CONFIG)
    return gate.check(
        backbone or tiny_backbone(),
        Rewards(judge, GOOD, independent),
        olds,
        [(answer, [logprob] * len(answer.response_ids)) for answer in news],
        decode=decode,
        alarms=[],
        config=config,
    )


def test_the_whole_gate_on_a_model_that_did_not_move() -> None:
    """The same answers: ties everywhere, no growth, no KL. Only a win by luck is missing, and it is not invented."""
    olds = parents(8)
    report = whole(olds, [Exchange(*t.tokens) for t in olds])
    values = {c.name: c.value for c in report.checks}
    assert values["win_rate"] == 0.5 and values["kl"] == 0 and values["length_growth"] == 0
    assert values["refusal_change"] == 0 and values["entropy_change"] == 0
    assert report.passed  # no worse than its parent, with certainty: the interval has no width
    assert [c.name for c in report.checks if c.n == 8] == [
        "win_rate", "kl", "length_growth", "end_of_text_change", "refusal_change", "entropy_change",
        "disagreement_growth",
    ]  # fmt: skip
    assert all(c.low is not None and c.high is not None for c in report.checks if c.n == 8)


def test_refusals_are_read_from_the_text() -> None:
    olds = [t for t in parents(8) if 9 not in t.tokens[1]]
    news = [Exchange(t.tokens[0], (9, END)) for t in olds]
    (check,) = [c for c in whole(olds, news).checks if c.name == "refusal_change"]
    assert check.value == 1.0 and not check.passed


def test_entropy_is_read_off_the_log_probabilities_of_drawing() -> None:
    olds = parents(8)
    report = whole(olds, [Exchange(*t.tokens) for t in olds], logprob=-2.0)
    (check,) = [c for c in report.checks if c.name == "entropy_change"]
    assert check.value == pytest.approx(1) and not check.passed


@pytest.mark.parametrize(("anchor", "reference"), [("base", None), ("parent", REFERENCE)])
def test_kl_is_measured_between_policy_and_anchor(anchor: str, reference: str | None) -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    stir(backbone, REFERENCE, 0.2)
    exchanges = [Exchange(*t.tokens) for t in parents(4)]
    config = CONFIG.model_copy(update={"kl_anchor": anchor})
    (check,) = [c for c in whole(parents(4), exchanges, backbone=backbone, config=config).checks if c.name == "kl"]
    kl_B = backbone.answer_kls(backbone.encode(exchanges), POLICY, reference)
    assert check.value == pytest.approx(kl_B.mean().item()) and check.value > 0.01


def test_without_heldout_answers_nothing_passes() -> None:
    report = whole([], [])
    assert not report.passed
    assert any("held-out prompts" in line for line in report.refusals)


# The independent judge


def judge_of(votes: float, auroc: float) -> Independent:
    model = RewardModel.fresh(torch.randn(40, 128), CONFIG)
    model.votes = votes
    return Independent(model, quality(auroc))


def test_an_independent_judge_can_refuse_what_the_reward_model_likes() -> None:
    assert gate_checks.independent_check(judge_of(100, 0.7), prompts(0, 1), CONFIG).passed
    check = gate_checks.independent_check(judge_of(100, 0.7), prompts(1, 0), CONFIG)
    assert not check.passed and check.value == 0 and check.n == 24
    assert check.detail is not None and "100 votes" in check.detail and "AUROC 0.70" in check.detail


@pytest.mark.parametrize("judge", [None, judge_of(63, 0.9), judge_of(100, 0.55)])
def test_a_judge_that_knows_too_little_does_not_count_and_that_is_said(judge: Independent | None) -> None:
    check = gate_checks.independent_check(judge, prompts(1, 0), CONFIG)
    assert check.passed and check.value is None and check.detail is not None
    assert ("below 128 examples" if judge is None else "it has seen") in check.detail


# Rates


def test_new_refusals_fail() -> None:
    assert gate_checks.refusal_check(prompts(0.5, 0.52), CONFIG).passed
    assert not gate_checks.refusal_check(prompts(0.0, 0.1), CONFIG).passed


@pytest.mark.parametrize(
    ("text", "refusing"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m unable to say.", True),
        ("As an AI language model, I have no opinions.", True),
        ("抱歉，我不能这样做。", True),
        ("The capital of France is Paris.", False),
        ("You can say that you are sorry.", False),
        ("x" * 300 + " I'm sorry", False),
    ],
)
def test_refusals_are_known_by_how_they_open(text: str, refusing: bool) -> None:
    assert refuses(text) is refusing


@pytest.mark.parametrize(("after", "passed"), [(40, True), (25, True), (10, False), (70, False)])
def test_entropy_may_neither_collapse_nor_explode(after: float, passed: bool) -> None:
    check = gate_checks.entropy_check(prompts(40, after), prompts(20, 20), CONFIG)
    assert check.passed is passed and check.value == pytest.approx(after / 40 - 1)


def test_entropy_is_a_tokens_not_an_answers() -> None:
    """Twice as long answers of the same entropy a token have twice the surprise."""
    assert gate_checks.entropy_check(prompts(40, 80), prompts(20, 40), CONFIG).value == pytest.approx(0)


# Intervals and power


def test_few_prompts_get_students_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    mean, low, high = gate_checks.mean_interval(values)
    truth = t.interval(0.95, 4, loc=0.6, scale=sem(values))
    assert (mean, low, high) == pytest.approx((0.6, *truth), abs=0.01)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 9, 30, 200])
def test_students_quantiles_are_scipys(degrees: int) -> None:
    assert gate_checks._student_t(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=0.02)


def test_the_smallest_effect_that_would_pass_is_told() -> None:
    def told(count: int) -> str:
        toss = {f"p{i}": ([0.0], [(-1.0) ** i]) for i in range(count)}
        return gate_checks.win_check("win_rate", toss, CONFIG).detail or ""

    assert "100 held-out prompts; a true win rate of 0.62 would pass" in told(100)
    assert "too few" in told(4)


def test_a_gate_of_that_power_passes_four_times_in_five() -> None:
    """Simulated: candidates that truly win as often as the report of a coin toss says suffices."""
    dice, passed = random.Random(1), 0
    for _ in range(150):
        scores = {f"p{i}": ([0.0], [1.0 if dice.random() < 0.62 else -1.0]) for i in range(100)}
        passed += gate_checks.win_check("win_rate", scores, CONFIG).passed
    assert 0.7 < passed / 150 < 0.9
