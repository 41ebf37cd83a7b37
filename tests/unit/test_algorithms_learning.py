"""Every learner on a tiny model: learns what is liked, moves POLICY alone, says when there is nothing to learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from plaudit_trainer import algorithms
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.distributed import Crew
from plaudit_trainer.models import POLICY, Backbone
from tests.support.tiny_lessons import lesson_of, share_on_new_prompts, turned_round
from tests.support.tiny_models import save_tiny_base, stir, tiny_backbone, tiny_config
from tests.support.tiny_votes import Quiet

OTHERS = ["kto", "dpo", "grpo", "reinforce++", "reinforce", "sac"]
EACH = {"dpo": 4, "grpo": 4}
"""Answers to a prompt, for those that compare them."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


LR = {"dpo": 6e-3, "grpo": 6e-3, "sac": 6e-3}


def settings(name: str, **changes: Any) -> TrainerConfig:
    start = {
        "algorithm": name,
        "lr": LR.get(name, 3e-3),
        "ppo_epochs": 4,
        "preference_epochs": 4,
        "rollouts_per_prompt": 2,
    }
    return tiny_config(**(start | {"kl_ceiling": 1e6, "kl_target": 3.0} | changes))


def lesson(name: str, base: Path, folder: Path, count: int = 48, backbone: Backbone | None = None) -> Lesson:
    return lesson_of(backbone or tiny_backbone(), base, folder, settings(name), count=count, each=EACH.get(name, 1))


def trained(name: str, given: Lesson, reporter: Quiet | None = None, **changes: Any) -> Trained:
    config = settings(name, **changes)
    return algorithms.chosen(config).train(given, reporter or Quiet(), config)


@pytest.mark.parametrize("name", OTHERS)
def test_it_says_more_of_what_is_liked_on_prompts_it_never_saw(name: str, base: Path, tmp_path: Path) -> None:
    given, reporter = lesson(name, base, tmp_path, 192), Quiet()
    before = share_on_new_prompts(given.backbone)
    result = trained(name, given, reporter)
    assert share_on_new_prompts(given.backbone) > before + 0.015
    assert result.alarms == []
    assert reporter.stages == ["policy"]
    assert result.metrics[f"{name}/steps"] == len(reporter.steps) > 10
    assert result.metrics[f"{name}/kl"] > 0
    assert set(result.metrics) == {k for k in result.metrics if k.startswith(f"{name}/")}
    assert list(tmp_path.iterdir()) == []  # TRL's output folder is gone


@pytest.mark.parametrize("name", ["kto", "dpo", "reinforce", "sac"])
def test_it_says_less_of_it_where_the_votes_are_turned_round(name: str, base: Path, tmp_path: Path) -> None:
    given = turned_round(lesson(name, base, tmp_path, 192))
    before = share_on_new_prompts(given.backbone)
    trained(name, given)
    assert share_on_new_prompts(given.backbone) < before - 0.02


@pytest.mark.parametrize("name", OTHERS)
def test_only_the_policy_is_trained_and_all_of_it(name: str, base: Path, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    given = lesson(name, base, tmp_path, backbone=backbone)
    frozen = {n: p.clone() for n, p in backbone.model.named_parameters() if ".policy" not in n}
    before = {n: w.detach().clone() for n, w in backbone.adapter(POLICY).items()}
    trained(name, given)
    now = dict(backbone.model.named_parameters())
    assert len(frozen) > len(before)
    assert all(torch.equal(value, now[n]) for n, value in frozen.items())
    assert all(now[n].grad is None or not now[n].grad.any() for n in frozen)
    assert all(not torch.equal(value, backbone.adapter(POLICY)[n]) for n, value in before.items())


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_lesson_gives_the_same_policy(name: str, base: Path, tmp_path: Path) -> None:
    first, second = (lesson(name, base, tmp_path) for _ in range(2))
    for given in (first, second):
        torch.manual_seed(id(given) % 1000)  # nothing may depend on the global state
        trained(name, given)
    theirs = second.backbone.adapter(POLICY)
    assert all(torch.equal(w, theirs[n]) for n, w in first.backbone.adapter(POLICY).items())


@pytest.mark.parametrize("name", OTHERS)
def test_a_policy_that_runs_away_is_stopped_and_the_last_one_before_restored(
    name: str, base: Path, tmp_path: Path
) -> None:
    """At the ceiling, or, where the way back to it is found after training, at twice that."""
    given, reporter = lesson(name, base, tmp_path), Quiet()
    ceiling = 0.3 if name in {"kto", "dpo", "sac"} else 0.15
    result = trained(name, given, reporter, lr=0.05, kl_ceiling=ceiling, kl_target=100.0)
    assert result.metrics[f"{name}/stopped_by_ceiling"] == 1
    if name in {"kto", "dpo", "sac"}:  # the others measure a minibatch at a time
        assert result.metrics[f"{name}/kl"] <= 0.3
    assert all(step[f"{name}/kl"] <= 0.3 for step in reporter.steps)


@pytest.mark.parametrize("name", ["kto", "dpo"])
def test_the_parent_and_not_the_base_model_is_the_reference(name: str, base: Path, tmp_path: Path) -> None:
    """At the first step policy and parent are one, so the loss is that of no preference at all."""
    backbone, reporter = tiny_backbone(), Quiet()
    stir(backbone, "reference")
    backbone.copy_adapter("reference", POLICY)
    trained(name, lesson(name, base, tmp_path, backbone=backbone), reporter)
    assert reporter.steps[0][f"{name}/loss"] == pytest.approx({"kto": 0.5, "dpo": 0.693147}[name], abs=1e-5)


# Nothing to learn


def without_pairs(given: Lesson) -> Lesson:
    return replace(given, batch=replace(given.batch, pairs=given.batch.pairs[:3]))


def all_liked(given: Lesson) -> Lesson:
    singles = [replace(s, label=1.0) for s in given.batch.singles]
    return replace(given, batch=replace(given.batch, singles=singles, pairs=[]))


def all_held_out(given: Lesson) -> Lesson:
    """`heldout_share` close to one holds every prompt out."""
    return given


def voted_alike(given: Lesson) -> Lesson:
    alike = [replace(t, vote=1.0) for t in given.data.trajectories]
    return replace(given, data=replace(given.data, trajectories=alike))


def scored_alike(given: Lesson) -> Lesson:
    return replace(given, data=replace(given.data, score_B=torch.full_like(given.data.score_B, 0.3)))


def no_two_to_a_prompt(given: Lesson) -> Lesson:
    alone = [replace(t, tokens=((3 + i,), t.tokens[1])) for i, t in enumerate(given.data.trajectories)]
    return replace(given, data=replace(given.data, trajectories=alone))


def several_processes(given: Lesson) -> Lesson:
    given.backbone.crew = Crew(size=2)
    return given


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("dpo", without_pairs, "choose kto"),
        ("dpo", all_held_out, "This batch has 0"),
        ("kto", all_liked, "liked and disliked"),
        ("kto", all_held_out, "of 0, 0 are liked"),
        ("reinforce", voted_alike, "wait for more votes"),
        ("grpo", no_two_to_a_prompt, "none of 0 prompts"),
        ("grpo", scored_alike, "none of 12 prompts"),
        ("sac", scored_alike, "all scores are equal"),
        ("sac", several_processes, "accelerate launch"),
        ("kto", several_processes, "accelerate launch"),
    ],
)
def test_it_refuses_before_it_touches_the_policy_and_names_the_mend(
    name: str, change: Callable[[Lesson], Lesson], words: str, base: Path, tmp_path: Path
) -> None:
    given = lesson(name, base, tmp_path)
    before = {n: w.detach().clone() for n, w in given.backbone.adapter(POLICY).items()}
    share = {"heldout_share": 0.999999} if change is all_held_out else {}
    with pytest.raises(NothingToLearn, match=words):
        trained(name, change(given), **share)
    assert all(torch.equal(w, before[n]) for n, w in given.backbone.adapter(POLICY).items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "grpo"}, "set at least 2"),
        ({"algorithm": "grpo", "rollouts_per_prompt": 4, "rollout_prompts": 0}, "set at least 1"),
        ({"algorithm": "kto", "minibatch": 1}, "set at least 2"),
        ({"algorithm": "trpo"}, "Input should be 'ppo'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainerConfig(**changes)


def test_settings_that_can_work_are_not() -> None:
    assert TrainerConfig().algorithm == "ppo"
    assert TrainerConfig(algorithm="grpo", rollouts_per_prompt=2).rollouts_per_prompt == 2
    assert TrainerConfig(algorithm="kto").minibatch >= 2
    assert TrainerConfig(minibatch=1, rollout_prompts=0).minibatch == 1


def test_dpo_steps_further_by_default_and_as_told_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainerConfig(algorithm="dpo").lr == pytest.approx(5 * TrainerConfig(algorithm="ppo").lr)
    assert TrainerConfig(algorithm="kto").lr == TrainerConfig().lr
    assert TrainerConfig(algorithm="dpo", lr=1e-4).lr == 1e-4
    again = TrainerConfig.model_validate(TrainerConfig(algorithm="dpo").model_dump())
    assert again.lr == TrainerConfig(algorithm="dpo").lr  # not five times as much once more
    monkeypatch.setenv("PLAUDIT_TRAINER_LR", "2e-4")
    assert TrainerConfig(algorithm="dpo").lr == 2e-4
