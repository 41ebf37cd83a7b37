"""The probe of a whole model: log-probabilities of the same tokens under it and under its base, one model at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plaudit.wire.versions import Probe, ProbeSequence
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import Exchange

Load = Callable[[torch.dtype], Any]
"""The model in a precision."""


def make_whole_probe(
    before: Load, after: Load, exchanges: Sequence[Exchange], config: TrainerConfig, precision: torch.dtype
) -> tuple[Probe, dict[str, float]]:
    """Log-probabilities at temperature 1, in the precision the engine serves in.

    As for adapters the change in float32 goes along where that is not float32.

    Args:
        before, after: load the base model and the tuned one.
        exchanges: candidates; the first ones are taken, up to the configured size.
        precision: what the engine computes in.

    Returns:
        The probe, and metrics: size, mean |Δ| (nats a token).
    """
    taken = _first(exchanges, config)
    old, new = _logprobs(before(precision), taken), _logprobs(after(precision), taken)
    sequences = [
        ProbeSequence(
            prompt_ids=list(exchange.prompt_ids),
            response_ids=list(exchange.response_ids),
            parent_logprobs=old_R.tolist(),
            new_logprobs=new_R.tolist(),
        )
        for exchange, old_R, new_R in zip(taken, old, new, strict=True)
    ]
    if precision != torch.float32:
        exact = zip(_logprobs(before(torch.float32), taken), _logprobs(after(torch.float32), taken), strict=True)
        for sequence, (old_R, new_R) in zip(sequences, exact, strict=True):
            sequence.exact_change = (new_R - old_R).tolist()
    tokens = sum(len(s.response_ids) for s in sequences)
    change = sum((n - o).abs().sum().item() for o, n in zip(old, new, strict=True)) / max(tokens, 1)
    figures = {"sequences": len(sequences), "tokens": tokens, "mean_change": change}
    return Probe(sequences=sequences), {f"probe/{name}": float(value) for name, value in figures.items()}


def _first(exchanges: Sequence[Exchange], config: TrainerConfig) -> list[Exchange]:
    taken: list[Exchange] = []
    tokens = 0
    for exchange in exchanges[: config.probe_sequences]:
        if tokens >= config.probe_tokens:
            break
        taken.append(exchange)
        tokens += len(exchange.response_ids)
    return taken


def _logprobs(model: Any, exchanges: Sequence[Exchange]) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return [_response_logprobs(model, exchange) for exchange in exchanges]


def _response_logprobs(model: Any, exchange: Exchange) -> Tensor:
    ids_T = torch.tensor([*exchange.prompt_ids, *exchange.response_ids], device=model.device)
    first = len(exchange.prompt_ids)
    logits_TV = model(ids_T[None], use_cache=False).logits[0, first - 1 : -1].float()
    return torch.log_softmax(logits_TV, -1).gather(1, ids_T[first:, None])[:, 0].cpu()
