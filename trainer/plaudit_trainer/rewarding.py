"""A run's reward models: the one that the policy follows, and one that it never sees and that judges it at the gate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from plaudit_trainer import batches, reward_model
from plaudit_trainer.batches import Example, PreferenceBatch, Single
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job
from plaudit_trainer.models import Encoded, Exchange
from plaudit_trainer.quality import Quality
from plaudit_trainer.reward_fit import Votes
from plaudit_trainer.reward_model import Reader, RewardModel, features_of

Encode = Callable[[Sequence[Exchange]], list[Encoded]]
"""As `Backbone.encode`."""

_JUDGE_SEED = 1000
"""Added to the seed, so that the heads of the two models share not even their random priors."""


@dataclass(frozen=True, slots=True)
class Independent:
    """A reward model of votes that the policy's never saw; its quality is on the votes of the policy's."""

    model: RewardModel
    quality: Quality

    def counts(self, config: TrainerConfig) -> bool:
        """Whether it knows enough to judge."""
        return self.model.votes >= config.judge_votes and self.quality.auroc.value >= config.reward_bar


@dataclass(frozen=True, slots=True)
class Rewards:
    """`judge` is what the policy follows; `quality` is its cross-fitted quality."""

    judge: RewardModel
    quality: Quality
    independent: Independent | None

    def save(self, folder: Path) -> None:
        """Write what the next run goes on from."""
        self.judge.save(folder)
        if self.independent is not None:
            self.independent.model.save(folder / "judge")


def fit(
    job: Job,
    batch: PreferenceBatch,
    encode: Encode,
    *,
    reader: Reader | None,
    metrics: dict[str, float],
    config: TrainerConfig,
) -> Rewards:
    """Judge the previous reward model on these votes, cross-fit to judge the new one, then fit it on all of its votes.

    Votes on held-out prompts go to the independent judge where there are enough of all. Adds to `metrics`.
    """
    theirs = _for_the_judge(batch.examples, config)
    ours = [place for place in range(len(batch.examples)) if place not in theirs]
    every, singles = votes_of(batch.examples, encode, reader), len(batch.singles)
    votes = every.part(ours, singles)
    prior = _earlier(job, "reward", votes, reader, config)
    if prior is not None:
        metrics |= reward_model.foretold(prior, votes).metrics("prequential")
    prior = prior or _fresh(votes, reader, config)
    splits = batches.splits_of([batch.examples[place] for place in ours], config.reward_folds, config.seed)
    quality = reward_model.judged(prior, votes, splits, config)
    judge = prior.fitted(votes, config)
    metrics |= quality.metrics("heldout")
    metrics |= {"reward/disagreement": judge.disagreement(votes.all_features()).mean().item()}
    metrics |= {"reward/votes_learnt": judge.votes}
    metrics |= {"reward/prior_plain": judge.strength.plain, "reward/prior_states": judge.strength.states}
    independent = _independent(job, every.part(sorted(theirs), singles), votes, reader, config)
    if independent is not None:
        metrics |= independent.quality.metrics("independent") | {"reward/independent_votes": independent.model.votes}
    return Rewards(judge, quality, independent)


def _for_the_judge(examples: Sequence[Example], config: TrainerConfig) -> set[int]:
    if not config.judge_batch or len(examples) < config.judge_batch:
        return set()
    heldout = batches.heldout_clusters([e.cluster for e in examples], config.heldout_share, config.seed)
    return {place for place, example in enumerate(examples) if example.cluster in heldout}


def _independent(
    job: Job, theirs: Votes, ours: Votes, reader: Reader | None, config: TrainerConfig
) -> Independent | None:
    """The judge of earlier runs after this batch's share of votes; what it is worth is told by the votes of ours."""
    own = config.model_copy(update={"seed": config.seed + _JUDGE_SEED})
    model = _earlier(job, "reward/judge", ours, reader, config)
    if len(theirs):
        model = (model or _fresh(ours, reader, own)).fitted(theirs, own)
    return None if model is None else Independent(model, reward_model.foretold(model, ours))


def _earlier(job: Job, place: str, votes: Votes, reader: Reader | None, config: TrainerConfig) -> RewardModel | None:
    warm = job.run.warm_start_location
    width = votes.all_features().shape[1]
    return RewardModel.load(Path(warm) / place, width, config, reader) if warm else None


def _fresh(votes: Votes, reader: Reader | None, config: TrainerConfig) -> RewardModel:
    return RewardModel.fresh(votes.all_features(), config, reader)


def votes_of(examples: Sequence[Example], encode: Encode, reader: Reader | None) -> Votes:
    """The examples as tensors; each text is read once."""
    singles = [e for e in examples if isinstance(e, Single)]
    pairs = [e for e in examples if not isinstance(e, Single)]
    texts = list(dict.fromkeys([s.tokens for s in singles] + [t for p in pairs for t in (p.chosen, p.rejected)]))
    features_BF = features_of(encode([Exchange(*t) for t in texts]), reader)
    row = {t: i for i, t in enumerate(texts)}
    return Votes(
        features_BF=features_BF[torch.tensor([row[s.tokens] for s in singles], dtype=torch.long)],
        label_B=torch.tensor([s.label for s in singles]),
        weight_B=torch.tensor([s.weight for s in singles]),
        chosen_PF=features_BF[torch.tensor([row[p.chosen] for p in pairs], dtype=torch.long)],
        rejected_PF=features_BF[torch.tensor([row[p.rejected] for p in pairs], dtype=torch.long)],
        weight_P=torch.tensor([p.weight for p in pairs]),
    )
