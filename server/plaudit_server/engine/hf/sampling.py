"""How a token is drawn, and with which log-probability: what vLLM calls `processed_logprobs`.

A drawn token's log-probability is that of the distribution it was really drawn from: softmax(logits / temperature)
after min-p, top-k and top-p, renormalised. At temperature 0 the likeliest token is taken, and its log-probability is
that of the plain softmax, as vLLM has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_GREEDY_BELOW = 1e-5

_NEUTRAL: Mapping[str, float] = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
_REFUSED = (
    *("tools", "response_format", "structured_outputs", "logit_bias", "bad_words", "allowed_token_ids"),
    *("use_beam_search", "echo", "suffix"),
)


class BadRequest(Exception):
    """The request cannot be served as it is. `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request's tokens are drawn, and when its answers end."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    top_logprobs: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < _GREEDY_BELOW


def read_sampling(body: Mapping[str, Any], *, room: int) -> Sampling:
    """The sampling that a request asks for.

    Args:
        body: OpenAI's request with vLLM's additional fields.
        room: tokens that the answer may have at most.

    Raises:
        BadRequest: a field has no sane value, or asks for what this engine cannot do.
    """
    for name in _REFUSED:
        if body.get(name):
            raise BadRequest(f"the transformers engine does not support {name}; leave it out", name)
    for name, neutral in _NEUTRAL.items():
        if _number(body, name, neutral, low=-2, high=2) != neutral:
            raise BadRequest(f"the transformers engine does not support {name}; leave it out", name)
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    if asked is not None and not 1 <= int(asked) <= room:
        raise BadRequest(f"max_tokens is {asked}, but there is room for 1 to {room} tokens", "max_tokens")
    stop = body.get("stop") or ()
    return Sampling(
        temperature=_number(body, "temperature", 1, low=0, high=100),
        top_p=_number(body, "top_p", 1, low=1e-9, high=1),
        top_k=max(0, int(_number(body, "top_k", 0, low=-1, high=1 << 30))),
        min_p=_number(body, "min_p", 0, low=0, high=1),
        max_tokens=int(asked or room),
        min_tokens=int(_number(body, "min_tokens", 0, low=0, high=1 << 30)),
        seed=body.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=frozenset(body.get("stop_token_ids") or ()),
        ignore_eos=bool(body.get("ignore_eos")),
        top_logprobs=int(_number(body, "top_logprobs", 0, low=0, high=20)),
    )


def _number(body: Mapping[str, Any], name: str, default: float, *, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}", name)
    return float(value)


def processed_logprobs(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """(V,) log-probabilities, float32, of the distribution that a token is drawn from; minus infinity where cut off."""
    logits_V = logits_V.float()
    if sampling.is_greedy:
        return logits_V.log_softmax(-1)
    logits_V = logits_V / sampling.temperature
    if sampling.min_p > 0:
        probability_V = logits_V.softmax(-1)
        logits_V = logits_V.masked_fill(probability_V < sampling.min_p * probability_V.max(), -torch.inf)
    if 0 < sampling.top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ascending_V, order_V = logits_V.sort()
        cut_V = ascending_V.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        cut_V[-1] = False  # the likeliest token always stays
        logits_V = logits_V.masked_fill(torch.zeros_like(cut_V).scatter(0, order_V, cut_V), -torch.inf)
    return logits_V.log_softmax(-1)


def draw(
    logits_V: Tensor, sampling: Sampling, generator: torch.Generator, banned: frozenset[int] = frozenset()
) -> tuple[int, Tensor]:
    """A token, and the log-probabilities (V,) it was drawn by.

    Args:
        logits_V: the model's.
        sampling: how.
        generator: of this answer alone, so that a seed repeats it whatever else is in the batch.
        banned: tokens that may not come yet.
    """
    if banned:
        logits_V = logits_V.index_fill(0, torch.tensor(sorted(banned), device=logits_V.device), -torch.inf)
    logprobs_V = processed_logprobs(logits_V, sampling)
    if sampling.is_greedy:
        return int(logprobs_V.argmax()), logprobs_V
    return int(torch.multinomial(logprobs_V.exp().cpu(), 1, generator=generator)), logprobs_V
