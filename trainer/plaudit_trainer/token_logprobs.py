"""Log-probabilities and entropies of tokens, without the [batch, time, vocabulary] tensor they are usually read off.

Shapes: N response positions laid end to end, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)

VOCABULARY_CHUNK = 128
"""Positions whose logits (float32, over the whole vocabulary) are in memory at once; GPUs take eight times as many."""


class TokenLogprobs(torch.autograd.Function):
    """Log-probabilities of given tokens from hidden states, without ever holding all logits; and the entropies.

    The output embedding is frozen, so d logp / d h = (W[token] - softmax · W) / temperature can be taken while a
    chunk's logits are at hand; the backward pass is then one multiplication. No gradient flows from the entropies,
    −Σ p log p over the whole vocabulary; they are zeros where they are not wanted.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  (torch gives them by position)
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, tokens_N: Tensor, temperature_N: Tensor, entropies: bool
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies), each (N,), nats, of softmax(hidden · Wᵀ / temperature)."""
        slope_ND = torch.empty_like(hidden_ND) if hidden_ND.requires_grad else None
        logprobs_N = hidden_ND.new_empty(len(tokens_N), dtype=torch.float32)
        entropy_N = torch.zeros_like(logprobs_N)
        chunk = VOCABULARY_CHUNK * (8 if hidden_ND.is_cuda else 1)
        for start in range(0, len(tokens_N), chunk):
            part = slice(start, start + chunk)
            tokens, temperature = tokens_N[part], temperature_N[part, None]
            logits_NV = F.linear(hidden_ND[part], weight_VD).float().div_(temperature)
            chosen_N1, largest_N1 = logits_NV.gather(1, tokens[:, None]), logits_NV.amax(1, keepdim=True)
            chances_NV = logits_NV.sub_(largest_N1).exp_()  # in place: a pass over memory costs as much as the product
            total_N1 = chances_NV.sum(1, keepdim=True)
            normaliser_N1 = largest_N1 + total_N1.log()
            logprobs_N[part] = (chosen_N1 - normaliser_N1)[:, 0]
            if slope_ND is None and not entropies:
                continue
            expected_ND = (chances_NV.to(weight_VD.dtype) @ weight_VD).float() / total_N1
            if entropies:  # −Σ p log p = log Z − Σ p logit, and the expected logit is the expected embedding's
                expected_N = (expected_ND * hidden_ND[part].float()).sum(1) / temperature[:, 0]
                entropy_N[part] = normaliser_N1[:, 0] - expected_N
            if slope_ND is not None:
                slope_ND[part] = ((weight_VD[tokens] - expected_ND) / temperature).to(slope_ND.dtype)
        ctx.save_for_backward(slope_ND)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The gradient of the hidden states, (N, D)."""
        (slope_ND,) = ctx.saved_tensors
        return (slope_ND * grads[0][:, None]).to(slope_ND.dtype), None, None, None, None


def token_kls(policy_ND: Tensor, reference_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """(N,): KL(π ‖ π_ref) of the next token, nats at temperature 1, over the whole vocabulary.

    Summed over answers drawn from π this is an unbiased estimate of the answers' KL, and a far steadier one than any
    that looks at the drawn tokens alone (Amini, Vieira and Cotterell 2025, arXiv 2504.10637).

    Args:
        policy_ND: hidden states from which the head reads π.
        reference_ND: those from which it reads π_ref.
    """
    kl_N = policy_ND.new_empty(len(policy_ND), dtype=torch.float32)
    chunk = VOCABULARY_CHUNK * (8 if policy_ND.is_cuda else 1)
    for start in range(0, len(kl_N), chunk):
        part = slice(start, start + chunk)
        ours_NV, theirs_NV = (
            F.linear(states_ND[part], weight_VD).float().log_softmax(1) for states_ND in (policy_ND, reference_ND)
        )
        kl_N[part] = F.kl_div(theirs_NV, ours_NV, log_target=True, reduction="none").sum(1)
    return kl_N.clamp(min=0)
