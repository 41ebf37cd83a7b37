"""The critics of the discrete soft actor-critic: what taking any token of the vocabulary is worth.

Q(s, a) = state(s) + worth(a) + [a ends the answer] · end(s). `worth` is linear in the token's embedding, `state` in the
prompt, in what was said so far and in its length. So Q of *every* token is one product of matrices, and its mean under
a policy needs the policy's mean embedding only. The price: a word is worth the same wherever it stands.

Shapes: B answers, N transitions (response tokens) of all answers laid end to end, D hidden, F features of state and
action together, J = 2 critics, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit_trainer import losses
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import Encoded
from plaudit_trainer.reward_model import RewardModel

CRITICS = 2
_PRIOR_TOKENS = 8.0
"""How many average tokens an answer's first real ones are mixed with, as in PPO's critic."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What the critics must know of a policy at each state: mean embedding, chance of ending, KL to the reference."""

    embedding_ND: Tensor
    ends_N: Tensor
    kl_N: Tensor


class SoftCritics:
    """Twin linear critics, which start as two halves of the reward model's ensemble.

    Args:
        judge: the reward model: where votes are silent, its halves are what the twins go on disagreeing about.
        encoded: the answers.
        embeddings_VD: the model's input embeddings.
        ends: end-of-text tokens.
    """

    def __init__(
        self,
        judge: RewardModel,
        encoded: Sequence[Encoded],
        embeddings_VD: Tensor,
        ends: Sequence[int],
        config: TrainerConfig,
    ) -> None:
        self.lengths = [len(e.exchange.response_ids) for e in encoded]
        self.mean_length = sum(self.lengths) / len(self.lengths)
        self.width = embeddings_VD.shape[1]
        self.embeddings_VD, self.ends = embeddings_VD.cpu(), list(ends)
        self.centre_D, self.scale_D = judge.centre_F[: self.width], judge.scale_F[: self.width] * self.mean_length
        context_BD = torch.stack([e.context_D for e in encoded]).cpu()
        context_BD = context_BD - context_BD.mean(0)
        spread_D = context_BD.std(0, correction=0).clamp(min=losses.STD_GUARD) * self.width**0.5
        self.state_NF = torch.cat(
            [self._states(judge, e, c) for e, c in zip(encoded, context_BD / spread_D, strict=True)]
        )
        self.action_NF = torch.cat([self._actions(e) for e in encoded])
        self.start_FJ = self._start(judge)
        self.weight_FJ = self.start_FJ.clone()
        self.shrunk_JFF, self.vote_NJ = self._normal_equations(config)

    def _states(self, judge: RewardModel, encoded: Encoded, context_D: Tensor) -> Tensor:
        """(R, F): of the state before each token. The action's part (embedding, end) is that of the tokens so far."""
        count_R = torch.arange(len(encoded.exchange.response_ids), dtype=torch.float32)
        words_RD = self._standard(self._embedded(encoded)).cumsum(0)
        words_RD = torch.cat([torch.zeros(1, self.width), words_RD[:-1]])
        meaning_RD = judge.standardise(encoded.prefix_TF[:-1].cpu())[:, self.width :]
        meaning_RD = meaning_RD * (count_R[1:] / (count_R[1:] + _PRIOR_TOKENS))[:, None]
        meaning_RD = torch.cat([torch.zeros(1, self.width), meaning_RD])
        share_R = count_R / self.mean_length
        place_RF = torch.stack([torch.ones_like(share_R), share_R, share_R**2], dim=1)
        no_end_RF = torch.zeros(len(count_R), 2)
        return torch.cat([words_RD, no_end_RF, meaning_RD, context_D.expand(len(count_R), -1), place_RF], dim=1)

    def _actions(self, encoded: Encoded) -> Tensor:
        """(R, F): what the token taken adds to the state's features."""
        ids = torch.tensor(encoded.exchange.response_ids)
        ended_R = torch.isin(ids, torch.tensor(self.ends)).float()
        share_R = torch.arange(len(ids)) / self.mean_length
        action_RF = torch.cat(
            [self._standard(self._embedded(encoded)), ended_R[:, None], (ended_R * share_R)[:, None]], 1
        )
        return torch.nn.functional.pad(action_RF, (0, self.state_width))

    @property
    def state_width(self) -> int:
        """Features that no action changes: meaning so far, prompt, place."""
        return 2 * self.width + 3

    def _embedded(self, encoded: Encoded) -> Tensor:
        return self.embeddings_VD[torch.tensor(encoded.exchange.response_ids)].float()

    def _standard(self, embedding_ND: Tensor) -> Tensor:
        """As the reward model sees a word, spread over an answer of mean length."""
        return (embedding_ND - self.centre_D) / self.scale_D

    def _start(self, judge: RewardModel) -> Tensor:
        """(F, J): the normalised score of either half of the heads; of a single head, that head twice."""
        halves = judge.weight_FK.chunk(CRITICS, dim=1) if judge.weight_FK.shape[1] > 1 else [judge.weight_FK] * CRITICS
        offsets = judge.offset_K.chunk(CRITICS) if len(judge.offset_K) > 1 else [judge.offset_K] * CRITICS
        columns = []
        for half_FK, offset_K in zip(halves, offsets, strict=True):
            words_F, meaning_F = (half_FK.mean(1) / judge.std).split(self.width)
            bias = (-(offset_K.mean() + judge.mean) / judge.std).reshape(1)
            columns.append(
                torch.cat([words_F, torch.zeros(2), meaning_F, torch.zeros(self.width), bias, torch.zeros(2)])
            )
        return torch.stack(columns, dim=1)

    def _normal_equations(self, config: TrainerConfig) -> tuple[Tensor, Tensor]:
        """Cholesky factors of XᵀWX + λI, and W: an answer counts as one vote, weighed by each twin's own bootstrap."""
        generator = torch.Generator().manual_seed(config.seed)
        drawn_BJ = -torch.rand(len(self.lengths), CRITICS, generator=generator).clamp(min=1e-9).log()  # exponential
        drawn_BJ = drawn_BJ / drawn_BJ.mean(0) / torch.tensor(self.lengths)[:, None]
        vote_NJ = drawn_BJ.repeat_interleave(torch.tensor(self.lengths), dim=0)
        taken_NF = self.state_NF + self.action_NF
        ridge_FF = config.sac_prior * torch.eye(taken_NF.shape[1])
        grams = [(taken_NF * vote_NJ[:, j : j + 1]).T @ taken_NF + ridge_FF for j in range(CRITICS)]
        return torch.linalg.cholesky(torch.stack(grams)), vote_NJ

    # Values

    def taken(self) -> Tensor:
        """(N, J): Q of the token taken."""
        return (self.state_NF + self.action_NF) @ self.weight_FJ

    def state(self) -> Tensor:
        """(N, J): the part of Q that the next token does not change."""
        return self.state_NF @ self.weight_FJ

    def worth(self) -> Tensor:
        """(V, J): what each token adds to Q, but for ending."""
        weight_DJ = self.weight_FJ[: self.width] / self.scale_D[:, None]
        raw_VJ = self.embeddings_VD.float() @ weight_DJ
        return raw_VJ - self.centre_D @ weight_DJ

    def end(self) -> Tensor:
        """(N, J): what an end-of-text token adds besides, at each state."""
        share_N = torch.cat([torch.arange(n) for n in self.lengths]) / self.mean_length
        flat_J, slope_J = self.weight_FJ[self.width], self.weight_FJ[self.width + 1]
        return flat_J + share_N[:, None] * slope_J

    def values(self, policy: Moments, alpha: float) -> Tensor:
        """(N,): V(s) = min_j Σ_a π(a|s) Q_j(s, a) − α KL(π ‖ π_ref)(s), exact over the vocabulary for either critic.

        Christodoulou takes the smaller critic action by action; here once a state, which is never smaller. (The
        policy's loss does take it action by action.)
        """
        worth_NJ = self._standard(policy.embedding_ND) @ self.weight_FJ[: self.width]
        mean_NJ = self.state() + worth_NJ + policy.ends_N[:, None] * self.end()
        return mean_NJ.min(1).values - alpha * policy.kl_N

    # Learning

    def back_up(
        self, policy: Moments, ratio_N: Tensor, score_B: Tensor, *, alpha: float, gamma: float, lam: float
    ) -> Tensor:
        """One Bellman backup of both critics from logged answers, whichever version gave them; the targets (N, J).

        Targets are Retrace's (Munos et al. 2016, equation 4); each critic then is the weighted ridge regression on
        them that is pulled to the reward model. Targets outside the range of the scores are brought back to it: no
        answer is worth more than the best, and without that bound off-policy backups can diverge.

        Args:
            ratio_N: π(a_t | s_t) / π_behaviour(a_t | s_t).
            score_B: the reward of each answer, on its last token.
        """
        values_N, taken_NJ = self.values(policy, alpha), self.taken()
        traces = (lam * ratio_N.clamp(max=1)).split(self.lengths)
        parts = zip(values_N.split(self.lengths), taken_NJ.split(self.lengths), traces, score_B.tolist(), strict=True)
        target_NJ = torch.cat([retrace(v, q, c, score, gamma) for v, q, c, score in parts])
        target_NJ = target_NJ.clamp(score_B.min().item(), score_B.max().item())
        taken_NF = self.state_NF + self.action_NF
        missing_NJ = self.vote_NJ * (target_NJ - taken_NF @ self.start_FJ)
        pulls = [taken_NF.T @ missing_NJ[:, j : j + 1] for j in range(CRITICS)]
        moved_JF = torch.cholesky_solve(torch.stack(pulls), self.shrunk_JFF)[:, :, 0]
        self.weight_FJ = self.start_FJ + moved_JF.T
        return target_NJ


def retrace(value_R: Tensor, taken_RJ: Tensor, trace_R: Tensor, score: float, gamma: float) -> Tensor:
    """(R, J): Q_t + Σ_{k ≥ t} γ^{k−t} (Π_{t < i ≤ k} c_i) δ_k, δ_k = r_k + γ V_{k+1} − Q_k, of one answer.

    Its score is the last token's reward; the state after its end is worth 0. `trace_R` holds c = λ · min(1, ratio).
    """
    after_R = torch.cat([gamma * value_R[1:], torch.tensor([score])])
    delta_RJ = after_R[:, None] - taken_RJ
    running_J = torch.zeros(taken_RJ.shape[1])
    carried = []
    for t in reversed(range(len(delta_RJ))):
        onwards_J = gamma * trace_R[t + 1] * running_J if t + 1 < len(delta_RJ) else running_J
        running_J = delta_RJ[t] + onwards_J
        carried.append(running_J)
    return taken_RJ + torch.stack(carried[::-1])
