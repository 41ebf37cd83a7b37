"""The mathematics of learning, as pure functions of tensors.

Shapes: N response tokens of all answers laid end to end, B answers, P pairs, K heads. Where a function takes
`lengths`, N is their sum and answers follow each other in that order; no function ever sees padding. Log-probabilities
are in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)

STD_GUARD = 1e-6
"""A standard deviation below this counts as none: dividing by it would make noise of nothing."""


def token_rewards(
    score_B: Tensor, policy_logprobs_N: Tensor, reference_logprobs_N: Tensor, lengths: Sequence[int], beta: float
) -> Tensor:
    """−β · (log π − log π_ref) at each token, and the answer's score on its last real token (Ziegler et al. 2019)."""
    rewards_N = -beta * (policy_logprobs_N - reference_logprobs_N)
    last_B = torch.tensor(lengths, device=score_B.device).cumsum(0) - 1
    return rewards_N.index_add(0, last_B, score_B.to(rewards_N.dtype))


def advantages_and_returns(
    rewards_N: Tensor, values_N: Tensor, lengths: Sequence[int], gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation within each answer (Schulman et al. 2016); the state after its end is worth 0.

    Returns:
        Advantages A_t = Σ (γλ)^k δ_{t+k} with δ_t = r_t + γ V_{t+1} − V_t, and returns A + V, each (N,).
    """
    rewards_BT, values_BT = (
        torch.nn.utils.rnn.pad_sequence(x.split(list(lengths)), batch_first=True) for x in (rewards_N, values_N)
    )
    delta_BT = rewards_BT - values_BT
    delta_BT[:, :-1] += gamma * values_BT[:, 1:]
    # Beyond an answer's end rewards and values are zeros, hence δ and the running sum as well: nothing leaks in.
    running_B = torch.zeros_like(delta_BT[:, 0])
    for t in reversed(range(delta_BT.shape[1])):
        running_B = delta_BT[:, t] + gamma * lam * running_B
        delta_BT[:, t] = running_B
    advantages_N = torch.cat([row[:n] for row, n in zip(delta_BT, lengths, strict=True)])
    return advantages_N, advantages_N + values_N


def whiten(values_N: Tensor, *, shift_mean: bool = True) -> Tensor:
    """To variance 1 and, unless told otherwise, mean 0. A constant input only loses its mean: there is no scale."""
    mean = values_N.mean()
    std = values_N.std(correction=0)
    centred = values_N - mean
    scaled = centred / std if std > STD_GUARD else torch.zeros_like(centred)
    return scaled if shift_mean else scaled + mean


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The policy's loss (a scalar to differentiate) and what to watch beside it."""

    loss: Tensor
    clipped_N: Tensor
    ratio_deviation: float

    @property
    def clipped_share(self) -> float:
        """Of the tokens, those whose gradient the clip takes away."""
        return self.clipped_N.float().mean().item()


def importance_weights(proximal_logprobs_N: Tensor, behaviour_logprobs_N: Tensor, cap: float) -> Tensor:
    """min(π_prox / π_behaviour, cap): corrects for answers that an older version gave (Espeholt et al. 2018)."""
    return (proximal_logprobs_N - behaviour_logprobs_N).exp().clamp(max=cap)


def policy_loss(
    logprobs_N: Tensor,
    proximal_logprobs_N: Tensor,
    advantages_N: Tensor,
    importance_N: Tensor,
    *,
    clip: float,
    token_count: int | None = None,
) -> PolicyLoss:
    """Decoupled PPO (Hilton et al. 2022): clipped ratio to the proximal policy × truncated importance weight.

    −1/n Σ w_t · min(ρ_t A_t, clip(ρ_t, 1−ε, 1+ε) A_t) with ρ = π / π_prox. Proximal log-probabilities, advantages
    and weights are constants.

    Args:
        token_count: n where these tokens are part of a larger step (gradient accumulation); else N.
    """
    ratio_N = (logprobs_N - proximal_logprobs_N.detach()).exp()
    advantages_N, importance_N = advantages_N.detach(), importance_N.detach()
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip, 1 + clip) * advantages_N
    loss = -(importance_N * torch.minimum(plain_N, clipped_N)).sum() / (token_count or len(logprobs_N))
    with torch.no_grad():
        return PolicyLoss(loss, clipped_N < plain_N, ratio_deviation=(ratio_N - 1).abs().max().item())


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """½ mean max((V − R)², (clip(V, V_old ± ε) − R)²) (Schulman et al. 2017)."""
    old_values_N, returns_N = old_values_N.detach(), returns_N.detach()
    clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2).mean()


def kl_penalty(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """KL(π ‖ π_ref) a token by the low-variance estimator e^d − 1 − d, d = log π_ref − log π (Schulman 2020); ≥ 0.

    Unbiased over tokens drawn from π. As a loss it pulls π towards π_ref with the gradient −(e^d − 1) ∇ log π.
    """
    d_N = reference_logprobs_N - logprobs_N
    return d_N.exp() - 1 - d_N


def kl_of_others(logprobs_N: Tensor, reference_logprobs_N: Tensor, behaviour_logprobs_N: Tensor, cap: float) -> Tensor:
    """`kl_penalty` a token over tokens that another policy drew: each counts min(π / π_behaviour, cap) times.

    Without the weight the estimate grows with the step itself: a token that π has just made unlikely is in the sample
    as often as before, and its e^d is the larger (DeepSeek-V3.2, arXiv 2512.02556, equation 7).
    """
    weight_N = importance_weights(logprobs_N, behaviour_logprobs_N, cap)
    return weight_N * kl_penalty(logprobs_N, reference_logprobs_N)


def adapted_coefficient(beta: float, kl: float, target: float, horizon: float = 0.2) -> float:
    """β for the next pass: up where the KL lies above its target, down where below (Ziegler et al. 2019)."""
    error = max(-horizon, min(horizon, kl / target - 1))
    return beta * (1 + error)


def preference_loss(chosen_PK: Tensor, rejected_PK: Tensor, weight_PK: Tensor) -> Tensor:
    """Bradley–Terry: Σ w · −log σ(r_chosen − r_rejected), of each head on its own."""
    return (weight_PK * -F.logsigmoid(chosen_PK - rejected_PK)).sum()


def thumbs_loss(score_BK: Tensor, label_B: Tensor, weight_BK: Tensor, offset_K: Tensor) -> Tensor:
    """Binary cross-entropy: Σ w · BCE(σ(r − offset), label). The offset is what an average user already likes."""
    logits_BK = score_BK - offset_K
    labels_BK = label_B[:, None].expand_as(logits_BK)
    return (weight_BK * F.binary_cross_entropy_with_logits(logits_BK, labels_BK, reduction="none")).sum()
