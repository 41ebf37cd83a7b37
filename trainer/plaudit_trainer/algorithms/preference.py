"""KTO and DPO: which answers they learn from, and as which rows. The losses and the loop are TRL's (trl_loop.py).

Rows hold token ids, `prompt_ids` and the answer's apart, so TRL masks by length; no mask is made from token values,
since the padding token often is the end-of-text token.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from plaudit_trainer import batches
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.algorithms.passes import require_one_process
from plaudit_trainer.algorithms.trl_loop import Plan, Row, train_dpo, train_kto
from plaudit_trainer.batches import Pair, Single, Tokens
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.models import REFERENCE, Backbone, Exchange

T = TypeVar("T", "Opinion", Pair)


class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on the batch's pairs.

    −log σ(β · [log π/π_ref (chosen) − log π/π_ref (rejected)]), both sides answering the same prompt.
    """

    uses_trajectories = False
    uses_rollouts = False

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Move POLICY.

        Raises:
            NothingToLearn: fewer than `min_pairs` pairs outside the held-out prompts.
        """
        _require_support("dpo", lesson)
        pairs = [p for p in lesson.batch.pairs if not _is_heldout(p, config)]
        if len(pairs) < config.min_pairs:
            raise NothingToLearn(
                f"dpo needs pairs: two answers to one prompt, one preferred. This batch has {len(pairs)} to train on, "
                f"{config.min_pairs} are needed; choose kto, which learns from single votes, or collect comparisons, "
                "corrections or several answers to a prompt"
            )
        rows = preference_rows(lesson.backbone, pairs, config)
        longest = max(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows)
        step = max(1, config.minibatch // 2)  # a pair is two answers
        texts = [t for p in pairs for t in (p.chosen, p.rejected)]
        plan = Plan(rows, _pass_rows(step, 2 * longest, config, least=1), step, texts, {})
        return train_dpo(lesson, plan, reporter, config)


class KTO:
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) on single votes and both sides of pairs.

    λ_D · (1 − σ(β · (r − z))) for a liked answer and λ_U · (1 − σ(β · (z − r))) for a disliked one, with
    r = log π/π_ref and z an estimate of the KL from answers put to other prompts of the same pass.
    """

    uses_trajectories = False
    uses_rollouts = False

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Move POLICY.

        Raises:
            NothingToLearn: no answer is liked, or none disliked.
        """
        _require_support("kto", lesson)
        examples = [e for e in opinions(lesson.batch.singles, lesson.batch.pairs) if not _is_heldout(e.source, config)]
        liked = [e for e in examples if e.liked]
        if len(liked) in (0, len(examples)):
            raise NothingToLearn(
                f"kto needs liked and disliked answers outside the held-out prompts; of {len(examples)}, {len(liked)} "
                "are liked: wait for more votes"
            )
        longest = max(len(e.tokens[0]) + len(e.tokens[1]) for e in examples)
        pass_rows = _pass_rows(config.minibatch, longest, config, least=2)
        rows = opinion_rows(lesson.backbone, examples, pass_rows, config)
        texts = [e.tokens for e in examples]
        plan = Plan(rows, pass_rows, config.minibatch, texts, class_weights(examples))
        return train_kto(lesson, plan, reporter, config)


def _require_support(name: str, lesson: Lesson) -> None:
    require_one_process(name, lesson)
    if lesson.backbone.model.config.is_encoder_decoder:
        raise NothingToLearn(f"{name} trains causal models only, as TRL does; choose ppo for one with an encoder")


# Rows


@dataclass(frozen=True, slots=True)
class Opinion:
    """An answer that was liked or not, with what its raters' word weighs."""

    tokens: Tokens
    liked: bool
    weight: float
    source: Single | Pair


def opinions(singles: Sequence[Single], pairs: Sequence[Pair]) -> list[Opinion]:
    """Singles, and both sides of pairs. A split vote counts as far as it leans; one that is even says nothing."""
    found = [
        Opinion(s.tokens, s.label > 0.5, s.weight * abs(2 * s.label - 1), s) for s in singles if abs(s.label - 0.5) > 0
    ]
    for pair in pairs:
        found += [Opinion(pair.chosen, True, pair.weight, pair), Opinion(pair.rejected, False, pair.weight, pair)]
    return [o for o in found if o.weight > 0]


def class_weights(examples: Sequence[Opinion]) -> dict[str, float]:
    """λ_D and λ_U: the mean weight of each class, brought to mean 1 over all. Weights within a class: `_drawn`."""
    mean = sum(e.weight for e in examples) / len(examples)
    liked, disliked = [e.weight for e in examples if e.liked], [e.weight for e in examples if not e.liked]
    return {
        "desirable_weight": sum(liked) / len(liked) / mean,
        "undesirable_weight": sum(disliked) / len(disliked) / mean,
    }


def opinion_rows(backbone: Backbone, examples: Sequence[Opinion], pass_rows: int, config: TrainerConfig) -> list[Row]:
    """KTO's rows: shuffled, each with the answer of its neighbour in the pass, from which TRL estimates the KL.

    The same rotation as TRL's own preparation. A last pass of a single row would be its own neighbour and is left out.
    """
    draw = random.Random(config.seed)  # noqa: S311 (an order of examples is no secret)
    drawn = [e for liked in (True, False) for e in _drawn([e for e in examples if e.liked is liked], draw)]
    draw.shuffle(drawn)
    drawn = drawn[: len(drawn) - (len(drawn) % pass_rows == 1)]
    answers = [e.tokens[1] for e in drawn]
    neighbours: list[tuple[int, ...]] = []
    for start in range(0, len(answers), pass_rows):
        part = answers[start : start + pass_rows]
        neighbours += [part[-1], *part[:-1]]
    own = reference_sums(backbone, [e.tokens for e in drawn])
    other = reference_sums(backbone, [(e.tokens[0], n) for e, n in zip(drawn, neighbours, strict=True)])
    return [
        {
            "prompt_ids": list(e.tokens[0]),
            "completion_ids": list(e.tokens[1]),
            "KL_completion_ids": list(neighbour),
            "label": e.liked,
            "ref_logps": ref,
            "ref_KL_logps": ref_kl,
        }
        for e, neighbour, ref, ref_kl in zip(drawn, neighbours, own, other, strict=True)
    ]


def preference_rows(backbone: Backbone, pairs: Sequence[Pair], config: TrainerConfig) -> list[Row]:
    """DPO's rows. Both sides must answer the prompt as it stands in the chosen one: a pair has one prompt."""
    drawn = _drawn(pairs, random.Random(config.seed))  # noqa: S311 (no secret)
    chosen = reference_sums(backbone, [p.chosen for p in drawn])
    rejected = reference_sums(backbone, [(p.chosen[0], p.rejected[1]) for p in drawn])
    return [
        {
            "prompt_ids": list(p.chosen[0]),
            "chosen_ids": list(p.chosen[1]),
            "rejected_ids": list(p.rejected[1]),
            "ref_chosen_logps": up,
            "ref_rejected_logps": down,
        }
        for p, up, down in zip(drawn, chosen, rejected, strict=True)
    ]


def _drawn(examples: Sequence[T], draw: random.Random) -> list[T]:
    """As many examples, each as often as its weight says: TRL's losses know no weight an example.

    Systematic resampling: with equal weights each comes once, else floor or ceiling of its share, right on average.
    """
    unit = sum(e.weight for e in examples) / max(len(examples), 1)
    drawn: list[T] = []
    reached, mark = 0.0, draw.random()
    for example in examples:
        reached += example.weight / unit
        while mark < reached - 1e-9:
            drawn.append(example)
            mark += 1
    return drawn


def reference_sums(backbone: Backbone, texts: Sequence[Tokens]) -> list[float]:
    """log π_ref of each whole answer at temperature 1, nats."""
    encoded = backbone.encode([Exchange(*t) for t in texts])
    with backbone.using(REFERENCE):
        return [logp.sum().item() for logp in backbone.all_logprobs(encoded, [1.0] * len(encoded))]


def _is_heldout(example: Single | Pair, config: TrainerConfig) -> bool:
    return bool(batches.heldout_clusters([example.cluster], config.heldout_share, config.seed))


def _pass_rows(step: int, longest: int, config: TrainerConfig, *, least: int) -> int:
    """Rows of one pass: a step's, or as many of them as the token budget holds."""
    return max(least, min(step, config.token_budget // longest))
