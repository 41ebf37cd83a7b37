"""The smallest learning curve, on a tiny model: users' votes move the policy on questions it never saw, noise does not.

Three seeds of the product's loop, the gate active, judged with an interval; and the same votes dealt to the answers at
random, with every gate open, as the control that keeps this test able to fail.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import judging, learning_curve, pieces, staleness
from benchmarks.cells import Cells
from benchmarks.online import ChangedSettings, OnlineRun, Rules, judge
from benchmarks.simulation import BASE, Clock, Crowd, LocalEngine
from benchmarks.tastes import Answer
from plaudit_trainer import algorithms
from plaudit_trainer.algorithms.base import Lesson, Trained
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from tests.support.tiny_models import save_tiny_base, tiny_config

SEEDS = range(3)
ROUNDS = 3
# Random weights know no words: a taste costs them more nats than a trained model, how long they answer is chance.
TINY: dict[str, Any] = {"lr": 1e-2, "lora_layers": 1.0, "ppo_epochs": 4, "kl_target": 10.0, "kl_ceiling": 30.0}
TINY |= {"gate_length_growth": 1.0, "gate_end_of_text_drop": 1.0, "gate_answers": 128, "probe_sequences": 4}
OPEN: dict[str, Any] = {"reward_bar": 0.0, "gate_win_rate": 0.0, "gate_disagreement_growth": 99.0}


def lower_case(answer: Answer) -> bool:
    """At least half of the letters are small: what base does in about half of its answers."""
    return bool(answer.text) and sum(c.islower() or c == " " for c in answer.text) >= len(answer.text) / 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def rules(base: Path, seed: int = 0, *, shuffled: bool = False, votes: int = 128, **changes: Any) -> Rules:
    loop = {name: changes.pop(name) for name in ("lag", "old_answers") if name in changes}
    config = tiny_config(**(TINY | {"seed": seed} | changes))
    return Rules(base, "lower_case", Crowd(lower_case, seed, shuffled=shuffled), config, votes, **loop)


def begun(base: Path, folder: Path, played: Rules, name: str = "run") -> OnlineRun:
    return OnlineRun(folder / name, played, LocalEngine(base, played.config, folder))


def curve(base: Path, folder: Path, **changes: Any) -> tuple[list[float], list[OnlineRun]]:
    """[mean, low, high] gain in points over all seeds, and the runs."""
    runs = [begun(base, folder, rules(base, seed, **changes), f"s{seed}") for seed in SEEDS]
    for run in runs:
        for _ in range(ROUNDS):
            run.advance()
    return judging.gain_points([run.heldout(ROUNDS, samples=8) for run in runs]), runs


def test_votes_teach_what_users_like_and_shuffled_votes_do_not(base: Path, tmp_path: Path) -> None:
    began = time.process_time()
    (gain, low, _), runs = curve(base, tmp_path / "votes")
    assert low > 0, f"gain {gain} points: the interval reaches down to {low}"
    assert gain > 15
    assert sum(r.verdict == "candidate" for run in runs for r in run.rounds) >= len(runs) * ROUNDS / 2

    (chance, _, _), control = curve(base, tmp_path / "control", shuffled=True, **OPEN)
    served = [r.verdict == "candidate" for run in control for r in run.rounds]
    assert sum(served) > len(served) / 2  # noise may run into the KL ceiling, and mostly it was trained and served
    assert chance < gain / 2
    assert time.process_time() - began < 180


# Resuming


def test_a_run_goes_on_where_it_stopped(base: Path, tmp_path: Path) -> None:
    begun(base, tmp_path, rules(base, **OPEN, votes=48)).advance()
    again = begun(base, tmp_path, rules(base, **OPEN, votes=48))
    assert [r.number for r in again.rounds] == [1] and again.passed() == [BASE, "v1"]
    (tmp_path / "run" / "v2").mkdir()
    (tmp_path / "run" / "v2" / "half.json").write_text("{}")  # killed while it trained
    second = again.advance()
    assert (second.parent, second.spoke) == ("v1", "v1")
    assert not (tmp_path / "run" / "v2" / "half.json").exists()
    assert [r.number for r in begun(base, tmp_path, rules(base, **OPEN, votes=48)).rounds] == [1, 2]


def test_a_run_is_not_gone_on_with_under_other_settings(base: Path, tmp_path: Path) -> None:
    begun(base, tmp_path, rules(base))
    with pytest.raises(ChangedSettings, match="config"):
        begun(base, tmp_path, rules(base, lr=1.0))


def test_a_version_that_did_not_pass_serves_nobody(base: Path, tmp_path: Path) -> None:
    run = begun(base, tmp_path, rules(base, votes=48, reward_bar=1.0))
    assert run.advance().verdict == "rejected"
    assert run.passed() == [BASE]
    assert judging.gain_points([run.heldout(1, samples=1)]) == [0, 0, 0]
    second = run.advance()
    assert second.parent == BASE and second.metrics["reward/prequential_auroc"] >= 0  # but its reward model goes on


# The engine


def test_runs_with_one_seed_hear_the_same_base_and_others_do_not(base: Path, tmp_path: Path) -> None:
    def texts(seed: int, moment: str) -> list[str]:
        engine = LocalEngine(base, tiny_config(), tmp_path)
        engine.enter(seed, moment, {})
        return [a.text for a in engine.ask(["What is it?", "Who?", "What is it?"], BASE)]

    first = texts(0, "round 1")
    assert first[0] != first[2]  # asked twice, answered twice
    assert first == texts(0, "round 1")
    assert first != texts(1, "round 1") and first != texts(0, "round 2")


def test_the_pool_grows_without_repeating_itself(base: Path, tmp_path: Path) -> None:
    def drawn(count: int) -> list[str]:
        engine = LocalEngine(base, tiny_config(), tmp_path)
        engine.enter(0, "heldout", {})
        return [a.text for a in engine.ask(["Why?"] * count, BASE)]

    few = drawn(2)
    many = drawn(6)
    assert many[:2] == few and len(set(many)) >= 4, (
        "chance may repeat an empty answer, the seed may not repeat them all"
    )


def test_answers_come_with_the_log_probabilities_of_who_spoke(base: Path, tmp_path: Path) -> None:
    run = begun(base, tmp_path, rules(base, votes=48, **OPEN))
    run.advance()
    engine = run.engine
    engine.enter(0, "x", {"v1": tmp_path / "run" / "v1"})
    for version in (BASE, "v1"):
        answers = engine.ask(["Why?", "How do I tie a tie?"], version)
        own, other = (engine.logprobs(v, answers) for v in (version, "v1" if version == BASE else BASE))
        for answer, mine, theirs in zip(answers, own, other, strict=True):
            assert answer.logprobs == pytest.approx(mine, abs=1e-4)
            assert answer.logprobs != pytest.approx(theirs, abs=1e-2)


def test_the_kl_is_to_base_and_base_is_judged_against_itself(base: Path, tmp_path: Path) -> None:
    run = begun(base, tmp_path, rules(base, votes=48, **OPEN))
    run.advance()
    locations = {"v1": tmp_path / "run" / "v1"}
    new = judge(run.engine, run.rules.crowd, locations, "v1", samples=4)
    assert judging.mean_of([new], "new", "kl") > 0.2
    same = judge(run.engine, run.rules.crowd, locations, BASE, samples=4)
    assert all(q.base == q.new for q in same)
    assert [q.base for q in same] == [q.base for q in new]


# Late votes


class Spy:
    """An algorithm that trains nothing and remembers its lesson."""

    uses_trajectories = True
    uses_rollouts = False

    def __init__(self) -> None:
        self.lessons: list[Lesson] = []
        self.parents: list[str] = []

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        self.lessons.append(lesson)
        raise Seen


class Seen(Exception):
    """Enough was seen."""


@pytest.mark.parametrize("old_answers", ["decoupled", "recomputed"])
def test_late_votes_are_on_old_answers_with_their_own_log_probabilities(
    old_answers: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour and reference (the parent) differ, unless the answers were taken for the parent's own."""
    run = begun(base, tmp_path, rules(base, votes=48, lag=1, old_answers=old_answers, **staleness.ALL_STALE, **OPEN))
    run.advance()
    spy = Spy()
    monkeypatch.setattr(algorithms, "chosen", lambda config: spy)
    with pytest.raises(Seen):
        run.advance()
    data = spy.lessons[0].data
    assert spy.lessons[0].job.run.parent == "v1"
    gaps = [(b - r).abs().max().item() for b, r in zip(data.behaviour, data.reference, strict=True)]
    assert len(gaps) > 20
    assert (max(gaps) < 1e-3) == (old_answers == "recomputed")
    assert {t.version for t in data.trajectories} == ({"v1"} if old_answers == "recomputed" else {BASE})


def test_naive_ppo_takes_its_ratio_to_the_version_that_answered(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step of the second round, before the parent moves: decoupled the ratio is 1, naive it is not."""
    steps: list[dict[str, float]] = []
    monkeypatch.setattr(Clock, "step", lambda self, step, metrics: steps.append(metrics) if step == 1 else None)
    for old_answers in ("decoupled", "naive"):
        changes = staleness.ALL_STALE | OPEN
        run = begun(base, tmp_path, rules(base, votes=48, lag=1, old_answers=old_answers, **changes), old_answers)
        run.advance()
        run.advance()
    decoupled, naive = steps[1], steps[3]
    assert decoupled["ppo/ratio_deviation"] < 1e-3 and naive["ppo/ratio_deviation"] > 0.1
    assert naive["ppo/importance_mean"] == pytest.approx(1, abs=1e-6)
    assert decoupled["ppo/importance_mean"] != pytest.approx(1, abs=1e-2)


# The commands


@pytest.fixture
def quickly(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Common options for a tiny model; wide gates through the environment, as a user would set them."""
    settings = {"REWARD_BAR": 0, "GATE_WIN_RATE": 0, "LR": 1e-2, "DEVICE": "cpu", "PRECISION": "float32", "THREADS": 1}
    settings |= {"GATE_ANSWERS": 16, "ROLLOUT_PROMPTS": 8, "LORA_RANK": 4, "GATE_LENGTH_GROWTH": 9}
    for name, value in settings.items():
        monkeypatch.setenv(f"PLAUDIT_TRAINER_{name}", str(value))
    monkeypatch.setitem(learning_curve.ALL_TASTES, "you", lower_case)
    monkeypatch.setitem(staleness.ALL_TASTES, "number", lower_case)
    return lambda *more: ["--model", str(base), "--work", str(tmp_path), "--tokens", "12", *more]


def test_the_learning_curve_stops_and_goes_on(
    quickly: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = quickly(
        "--tastes", "you", "--learners", "ppo", "--seeds", "0", "--votes", "24,48", "--votes-a-round", "24"
    )
    command += ["--samples", "1", "--no-write"]
    assert learning_curve.main([*command, "--minutes", "0"]) == 0
    said = capsys.readouterr().out
    assert "stopped by --minutes" in said and "missing 2: you.ppo.24.s0, you.ppo.48.s0" in said
    assert learning_curve.main(command) == 0
    said = capsys.readouterr().out
    assert "missing" not in said and "h left" in said
    first = Cells(tmp_path, 1).file("you.ppo.24.s0")
    cell = json.loads(first.read_text())
    assert len(cell["rounds"]) == 1 and len(cell["questions"]) == 50 and cell["settings"]["config"]["lr"] == 1e-2
    stamp = first.stat().st_mtime_ns
    assert learning_curve.main(command) == 0  # nothing is done twice
    assert first.stat().st_mtime_ns == stamp and "round" not in capsys.readouterr().out


def test_more_answers_judge_the_same_run_under_a_name_of_their_own(
    quickly: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    monkeypatch.setattr(pieces, "kept_file", lambda name: tmp_path / f"{name}.cells.jsonl")
    monkeypatch.setattr(learning_curve, "write_result", lambda name, _: written.append(name))
    command = quickly("--tastes", "you", "--learners", "ppo", "--seeds", "0", "--votes", "24", "--votes-a-round", "24")
    assert learning_curve.main([*command, "--samples", "1"]) == 0
    assert "round 1" in capsys.readouterr().out
    assert learning_curve.main([*command, "--samples", "2", "--result", "two"]) == 0
    said = capsys.readouterr().out
    assert "round 1" not in said and "missing" not in said
    assert written == ["learning_curve", "two"]
    for answers, name in enumerate(written, 1):
        (row,) = map(json.loads, (tmp_path / f"{name}.cells.jsonl").read_text().splitlines())
        assert {len(question["new"]) for question in row["questions"]} == {answers}
    assert learning_curve.main([*command, "--samples", "1", "--report"]) == 0
    assert "missing" not in capsys.readouterr().out  # the first measurement is still there


def test_the_staleness_table(
    quickly: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert staleness.main(quickly("--quick")) == 0
    said = capsys.readouterr().out
    assert "decoupled" in said and "naive" in said and "missing" not in said
    cell = json.loads(Cells(tmp_path / "quick", 1).file("number.lag1.naive.s0").read_text())
    assert [r["spoke"] for r in cell["rounds"]] == [BASE, BASE]
    assert [r["parent"] for r in cell["rounds"]] == [BASE, "v1"]
    assert cell["settings"]["config"]["rollout_prompts"] == 0
