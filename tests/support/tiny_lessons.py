"""Lessons on a tiny model: users who like low tokens, their votes, and how often the policy now says what they like."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from plaudit.wire.training import Batch
from plaudit_trainer.algorithms.base import Lesson
from plaudit_trainer.batches import Pair, PreferenceBatch, Single, heldout_clusters
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job
from plaudit_trainer.models import REFERENCE, Backbone
from plaudit_trainer.reward_fit import Votes
from plaudit_trainer.reward_model import RewardModel, answer_features
from plaudit_trainer.rollouts import generate_unpublished
from plaudit_trainer.trajectories import PolicyData
from tests.support.tiny_votes import run, share_liked, trajectory


def lesson_of(
    backbone: Backbone, base: Path, workspace: Path, config: TrainerConfig, *, count: int = 192, each: int = 1
) -> Lesson:
    """`count` answers of the parent, `each` to every prompt, with a vote on each and pairs where a prompt has both.

    Pairs are between answers to one prompt; where every prompt has one answer, there are none.
    """
    prompts = [(5 + i // each % 50, 6 + i // each // 50, 7) for i in range(count)]
    answers = generate_unpublished(backbone, prompts, max_new_tokens=12, temperature=1.0, seed=0)
    encoded = backbone.encode(answers)
    with backbone.using(REFERENCE):
        reference = backbone.all_logprobs(encoded, [1.0] * count)
    liked_B = torch.tensor([share_liked(a.response_ids) for a in answers])
    vote_B = torch.where(liked_B >= liked_B.median(), 1.0, -1.0)
    trajectories = [
        replace(trajectory(tokens=(a.prompt_ids, a.response_ids), logprobs=tuple(logp.tolist())), vote=vote)
        for a, logp, vote in zip(answers, reference, vote_B.tolist(), strict=True)
    ]
    clusters = _trained_clusters(count // each, config)
    singles = [
        Single(f"r{i}", t.tokens, (vote + 1) / 2, 1.0, frozenset([f"u{i}"]), clusters[i // each])
        for i, (t, vote) in enumerate(zip(trajectories, vote_B.tolist(), strict=True))
    ]
    judge = _judge(answer_features(encoded).cpu(), vote_B, config)
    data = PolicyData(trajectories, encoded, (liked_B - liked_B.mean()) / liked_B.std(), reference, reference)
    batch = PreferenceBatch(singles, _pairs(singles, each), trajectories, {})
    empty = Batch(id="b", state="leased", available=count, needed=1, records=[])
    return Lesson(Job(run(), empty, base, workspace), batch, backbone, judge, data)


def _trained_clusters(count: int, config: TrainerConfig) -> list[str]:
    """Prompt clusters of which none is held out."""
    names = [f"c{i}" for i in range(4 * count)]
    heldout = heldout_clusters(names, config.heldout_share, config.seed)
    return [n for n in names if n not in heldout][:count]


def _pairs(singles: Sequence[Single], each: int) -> list[Pair]:
    found = []
    for start in range(0, len(singles), each):
        group = singles[start : start + each]
        ups, downs = [s for s in group if s.label == 1], [s for s in group if s.label == 0]
        found += [
            Pair("votes", u.tokens, d.tokens, 1.0, u.users | d.users, u.cluster)
            for u, d in zip(ups, downs, strict=False)
        ]
    return found


def _judge(features_BF: torch.Tensor, vote_B: torch.Tensor, config: TrainerConfig) -> RewardModel:
    none_PF, ones_B = features_BF[:0], torch.ones(len(vote_B))
    votes = Votes(features_BF, (vote_B + 1) / 2, ones_B, none_PF, none_PF, torch.zeros(0))
    return RewardModel.fresh(features_BF, config).fitted(votes, config)


def share_on_new_prompts(backbone: Backbone) -> float:
    """Mean share of liked tokens in POLICY's answers to prompts that no lesson has."""
    prompts = [(9 + i % 40, 8, 3 + i // 40) for i in range(400)]
    answers = generate_unpublished(backbone, prompts, max_new_tokens=12, temperature=1.0, seed=99)
    return sum(share_liked(a.response_ids) for a in answers) / len(answers)


def turned_round(lesson: Lesson) -> Lesson:
    """The same answers, every vote the other way."""
    batch, data = lesson.batch, lesson.data
    singles = [replace(s, label=1 - s.label) for s in batch.singles]
    pairs = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in batch.pairs]
    trajectories = [replace(t, vote=-(t.vote or 0.0)) for t in data.trajectories]
    judge = replace(
        lesson.judge,
        weight_FK=-lesson.judge.weight_FK,
        offset_K=-lesson.judge.offset_K,
        mean=-lesson.judge.mean,
    )
    return replace(
        lesson,
        batch=replace(batch, singles=singles, pairs=pairs, trajectories=trajectories),
        data=replace(data, trajectories=trajectories, score_B=-data.score_B),
        judge=judge,
    )
