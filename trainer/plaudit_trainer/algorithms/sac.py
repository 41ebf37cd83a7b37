"""A discrete soft actor-critic over tokens, off-policy from logged votes (Christodoulou 2019, arXiv 1910.07207).

A state is a prompt and the answer so far, an action the next token, the only reward an answer's score, on its last
token. Entropy is measured against the parent version: α Σ KL(π ‖ π_ref) instead of −α Σ H(π), since over a vocabulary
of ten thousands of tokens a plain entropy bonus would pay for noise.

As in the paper: twin critics and the smaller of the two; a policy loss that is an exact expectation over all actions,
J = Σ_a π(a|s) (α log(π / π_ref) − min_j Q_j(s, a)) (equation 12); soft state values (equation 10); a temperature α
that is set by itself, for `kl_target` nats an answer in place of a target entropy (where the paper takes gradient steps
on α, equation 11, it is solved for before each pass: steps lag behind the policy and then overshoot); no importance
weights on the policy's loss, so that answers of any age can be learnt from.

Approximated: Q is linear in what is known of state and action (soft_critic.py), because votes by the hundred cannot
teach a network, and a network with an output a token would need them by the million; its backups are Retrace's
(several steps at once) and solved exactly instead of by gradient steps on a replay buffer with target networks.

Shapes: B answers, N response tokens laid end to end, D hidden, V vocabulary, J = 2 critics.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)

from plaudit_trainer import losses
from plaudit_trainer.algorithms.base import Lesson, NothingToLearn, Trained
from plaudit_trainer.algorithms.passes import Opening, make_passes, require_one_process
from plaudit_trainer.algorithms.soft_critic import Moments, SoftCritics
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Reporter
from plaudit_trainer.models import POLICY, REFERENCE
from plaudit_trainer.rollouts import end_tokens

_VOCABULARY_CHUNK = 128
"""States whose distributions over the whole vocabulary are in memory at once."""
_TEMPERATURE_STATES = 256
"""States on which the temperature is solved for."""
_TEMPERATURE_HALVINGS = 12
"""Of the temperature's square, up and down from its second-order estimate."""


class SAC:
    """Discrete soft actor-critic on logged, voted answers."""

    uses_trajectories = True
    uses_rollouts = False

    def train(self, lesson: Lesson, reporter: Reporter, config: TrainerConfig) -> Trained:
        """Move POLICY.

        Raises:
            NothingToLearn: all answers have the same score.
        """
        require_one_process("sac", lesson)
        if lesson.data.score_B.std(correction=0).item() <= losses.STD_GUARD:
            raise NothingToLearn("all scores are equal: sac has nothing to prefer; wait for votes that differ")
        learner = _SoftActorCritic(lesson, config)
        rows = range(len(lesson.data.lengths))
        # The ceiling is the learner's own: the estimate from sampled tokens that others stop at is not needed here.
        unbounded = config.model_copy(update={"kl_ceiling": math.inf})
        trained = make_passes("sac", learner.one_pass, rows, lesson=lesson, reporter=reporter, config=unbounded)
        return replace(trained, metrics=trained.metrics | {"sac/kl": learner.kl})


class _SoftActorCritic:
    """See the module."""

    def __init__(self, lesson: Lesson, config: TrainerConfig) -> None:
        self.backbone, self.data, self.config = lesson.backbone, lesson.data, config
        self.score_B = losses.whiten(lesson.data.score_B.cpu(), shift_mean=False)
        self.ends = torch.tensor(end_tokens(lesson.backbone.model), device=lesson.backbone.device)
        self.embeddings_VD = lesson.backbone.model.get_input_embeddings().weight.detach()
        self.critics = SoftCritics(lesson.judge, lesson.data.encoded, self.embeddings_VD, self.ends.tolist(), config)
        self.reference = self._all_states(REFERENCE)
        self.alpha = 0.0
        self.policy = self._moments()
        self.state, self.end, self.worth_VJ = self._critics_for_policy()

    @property
    def kl(self) -> float:
        """Nats an answer, exact at the logged states."""
        return self.policy.kl_N.sum().item() / len(self.data.lengths)

    def one_pass(self, opening: Opening) -> list[str]:
        """Evaluate the present policy, then improve it, a step a minibatch."""
        figures = self.evaluate(opening.proximal)
        self.alpha = self._temperature(opening.order[: self.config.minibatch])
        update, config = opening.update, self.config
        for start in range(0, len(opening.order), config.minibatch):
            rows = opening.order[start : start + config.minibatch]
            update.optimiser.zero_grad()
            step = self.accumulate(rows, opening.proximal)
            if step["kl"] > config.kl_ceiling:
                update.stop()
                break
            norm = update.apply(step, renewed=start == 0)
            step |= figures | {"alpha": self.alpha, "gradient_norm": norm}
            update.metrics = {f"sac/{name}": value for name, value in step.items()}
            opening.reporter.step(update.steps, update.metrics)
        self.policy = self._moments()
        if self.kl > config.kl_ceiling and not update.stopped:  # the last step went too far
            update.stop()
        if update.stopped:
            self.policy = self._moments()
        return []

    def evaluate(self, proximal: Sequence[Tensor]) -> dict[str, float]:
        """The configured number of backups of the critics under the present policy."""
        ratio_N = (torch.cat(list(proximal)) - torch.cat(self.data.behaviour)).exp().cpu()
        target_NJ = torch.zeros(0)
        for _ in range(self.config.sac_backups):
            target_NJ = self.critics.back_up(
                self.policy,
                ratio_N,
                self.score_B,
                alpha=self.alpha,
                gamma=self.config.gamma,
                lam=self.config.gae_lambda,
            )
        self.state, self.end, self.worth_VJ = self._critics_for_policy()
        taken_NJ = self.critics.taken()
        left = (target_NJ - taken_NJ).var() / target_NJ.var().clamp(min=losses.STD_GUARD)
        apart = (taken_NJ[:, 0] - taken_NJ[:, 1]).abs().mean()
        return {"explained_variance": 1 - left.item(), "twins_apart": apart.item()}

    def accumulate(self, rows: list[int], proximal: Sequence[Tensor]) -> dict[str, float]:
        """Add the gradient of these answers' mean loss a token; the KL (nats an answer) is exact at their states."""
        total = sum(self.data.lengths[r] for r in rows)
        figures = {"loss": 0.0, "ratio_deviation": 0.0, "kl": 0.0}
        for places in self.backbone.buckets([len(self.data.encoded[r].exchange) for r in rows]):
            part = [rows[p] for p in places]
            with self.backbone.using(POLICY):
                hidden_ND = self._states(part)
            loss_N, kl_N, logprobs_N = _SoftPolicyLoss.apply(
                hidden_ND, _of_rows(self.reference, part), *self._what_tokens_are_worth(part), self.alpha
            )
            loss = loss_N.sum() / total
            loss.backward()
            figures["loss"] += loss.item()
            figures["kl"] += kl_N.sum().item() / len(rows)
            ratio_N = (logprobs_N - _of_rows(proximal, part)).exp()
            figures["ratio_deviation"] = max(figures["ratio_deviation"], (ratio_N - 1).abs().max().item())
        return figures

    @torch.no_grad()
    def _temperature(self, rows: list[int]) -> float:
        """The α at which the soft optimum π ∝ π_ref exp(Q/α) of these answers lies `kl_target` nats an answer away.

        To second order that KL is Var(Q) / 2α²; from there it is computed exactly along a grid of α.
        """
        weight_VD, heat_N, state_NJ, end_NJ, worth_VJ, ends, _ = self._what_tokens_are_worth(rows)
        hidden_ND = _of_rows(self.reference, rows)
        picked = torch.linspace(0, len(hidden_ND) - 1, min(len(hidden_ND), _TEMPERATURE_STATES)).long()
        per_answer = len(hidden_ND) / len(picked) / len(rows)
        found = [
            (logprobs_NV, _smaller(state_NJ[picked[part]], end_NJ[picked[part]], worth_VJ, ends))
            for part, logprobs_NV, _ in _distributions(hidden_ND[picked], hidden_ND[picked], weight_VD, heat_N[picked])
        ]
        spread = sum(_variance(logprobs_NV.exp(), q_NV).sum().item() for logprobs_NV, q_NV in found) * per_answer
        start = max(math.sqrt(spread / (2 * self.config.kl_target)), losses.STD_GUARD)
        for doubled in range(-_TEMPERATURE_HALVINGS, _TEMPERATURE_HALVINGS):
            alpha = start * 2 ** (doubled / 2)
            if sum(tilted_kl(logp, q, alpha).sum().item() for logp, q in found) * per_answer <= self.config.kl_target:
                return alpha
        return start * 2 ** (_TEMPERATURE_HALVINGS / 2)

    def _what_tokens_are_worth(self, part: list[int]) -> tuple[Any, ...]:
        backbone = self.backbone
        tokens_N = torch.tensor(
            [t for r in part for t in self.data.encoded[r].exchange.response_ids], device=backbone.device
        )
        return (
            backbone.unembedding_VD,
            self._temperatures(part),
            _of_rows(self.state, part),
            _of_rows(self.end, part),
            self.worth_VJ,
            self.ends,
            tokens_N,
        )

    def _critics_for_policy(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        device, lengths = self.backbone.device, self.data.lengths
        state, end = (part.to(device).split(lengths) for part in (self.critics.state(), self.critics.end()))
        return list(state), list(end), self.critics.worth().to(device)

    # Passes over the model

    def _states(self, rows: Sequence[int]) -> Tensor:
        """(N, D): final hidden states before each response token, under the active adapter."""
        batch = [self.data.encoded[r] for r in rows]
        parts = self.backbone.states(batch).split([len(e.exchange.response_ids) + 1 for e in batch])
        return torch.cat([p[:-1] for p in parts])

    def _temperatures(self, rows: Sequence[int]) -> Tensor:
        lengths = torch.tensor([self.data.lengths[r] for r in rows], device=self.backbone.device)
        temperature_B = torch.tensor([self.data.temperatures[r] for r in rows], device=self.backbone.device)
        return temperature_B.repeat_interleave(lengths)

    @torch.no_grad()
    def _all_states(self, name: str) -> list[Tensor]:
        states: dict[int, Tensor] = {}
        with self.backbone.using(name):
            for rows in self.backbone.buckets([len(e.exchange) for e in self.data.encoded]):
                lengths = [self.data.lengths[r] for r in rows]
                states.update(zip(rows, self._states(rows).split(lengths), strict=True))
        return [states[row] for row in range(len(self.data.lengths))]

    @torch.no_grad()
    def _moments(self) -> Moments:
        """Of POLICY at every logged state."""
        hidden_ND, reference_ND = torch.cat(self._all_states(POLICY)), torch.cat(self.reference)
        temperature_N = self._temperatures(range(len(self.data.lengths)))
        embedding, ends, kl = [], [], []
        for _, logprobs_NV, ratio_NV in _distributions(
            hidden_ND, reference_ND, self.backbone.unembedding_VD, temperature_N
        ):
            chances_NV = logprobs_NV.exp()
            kl.append((chances_NV * ratio_NV).sum(1))
            ends.append(chances_NV[:, self.ends].sum(1))
            embedding.append((chances_NV.to(self.embeddings_VD.dtype) @ self.embeddings_VD).float())
        return Moments(torch.cat(embedding).cpu(), torch.cat(ends).cpu(), torch.cat(kl).cpu())


def _of_rows(tensors: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    return torch.cat([tensors[r] for r in rows])


def _variance(chances_NV: Tensor, q_NV: Tensor) -> Tensor:
    mean_N1 = (chances_NV * q_NV).sum(1, keepdim=True)
    return (chances_NV * (q_NV - mean_N1) ** 2).sum(1)


def tilted_kl(logprobs_NV: Tensor, q_NV: Tensor, alpha: float) -> Tensor:
    """(N,): KL of π ∝ exp(log π_ref + Q / α) to π_ref."""
    tilted_NV = (logprobs_NV + q_NV / alpha).log_softmax(-1)
    return (tilted_NV.exp() * (tilted_NV - logprobs_NV)).sum(1)


def _distributions(
    hidden_ND: Tensor, reference_ND: Tensor, weight_VD: Tensor, temperature_N: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(part, log π, log π / π_ref) over the whole vocabulary, a chunk of states at a time."""
    for start in range(0, len(hidden_ND), _VOCABULARY_CHUNK):
        part = slice(start, start + _VOCABULARY_CHUNK)
        heat = temperature_N[part, None]
        logprobs_NV = (F.linear(hidden_ND[part], weight_VD).float() / heat).log_softmax(-1)
        reference_NV = (F.linear(reference_ND[part], weight_VD).float() / heat).log_softmax(-1)
        yield part, logprobs_NV, logprobs_NV - reference_NV


class _SoftPolicyLoss(torch.autograd.Function):
    """Σ_a π(a|s) (α log(π/π_ref)(a|s) − min_j Q_j(s, a)) at each state, exact, without holding all distributions.

    With c(a) the bracket and J the loss, dJ / d logit_a = π(a) (c(a) − J). The output embedding is frozen, so the
    slope with respect to the hidden state is taken while a chunk's distributions are at hand. Also returns, without
    gradient, the KL to the reference (N,) and the taken tokens' log-probabilities (N,).
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd functions take no keywords)
        ctx: Any,
        hidden_ND: Tensor,
        reference_ND: Tensor,
        weight_VD: Tensor,
        temperature_N: Tensor,
        state_NJ: Tensor,
        end_NJ: Tensor,
        worth_VJ: Tensor,
        ends: Tensor,
        tokens_N: Tensor,
        alpha: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope_ND = torch.empty_like(hidden_ND)
        loss_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        kl_N, taken_N = torch.empty_like(loss_N), torch.empty_like(loss_N)
        for part, logprobs_NV, ratio_NV in _distributions(hidden_ND, reference_ND, weight_VD, temperature_N):
            chances_NV = logprobs_NV.exp()
            cost_NV = alpha * ratio_NV - _smaller(state_NJ[part], end_NJ[part], worth_VJ, ends)
            loss_N[part] = (chances_NV * cost_NV).sum(1)
            kl_N[part] = (chances_NV * ratio_NV).sum(1)
            taken_N[part] = logprobs_NV.gather(1, tokens_N[part, None])[:, 0]
            slope_NV = chances_NV * (cost_NV - loss_N[part, None]) / temperature_N[part, None]
            slope_ND[part] = slope_NV.to(weight_VD.dtype) @ weight_VD
        ctx.save_for_backward(slope_ND)
        ctx.mark_non_differentiable(kl_N, taken_N)
        return loss_N, kl_N, taken_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope_ND,) = ctx.saved_tensors
        return (slope_ND * grads[0][:, None]).to(slope_ND.dtype), *[None] * 9


def _smaller(state_NJ: Tensor, end_NJ: Tensor, worth_VJ: Tensor, ends: Tensor) -> Tensor:
    """(N, V): min_j Q_j(s, a) of every token."""
    smallest_NV: Tensor | None = None
    for j in range(state_NJ.shape[1]):
        q_NV = state_NJ[:, j, None] + worth_VJ[:, j]
        q_NV[:, ends] += end_NJ[:, j, None]
        smallest_NV = q_NV if smallest_NV is None else torch.minimum(smallest_NV, q_NV)
    assert smallest_NV is not None
    return smallest_NV
