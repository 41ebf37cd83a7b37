"""Fresh answers: from the engine on a published version, or from the trainer's own model on an unpublished one."""

from collections.abc import Sequence
from typing import Any

import torch

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt
from plaudit_trainer import shared_prefix
from plaudit_trainer.batches import Trajectory
from plaudit_trainer.learner import Sampler
from plaudit_trainer.models import POLICY, Backbone, Exchange
from plaudit_trainer.sampling import Draw

Drawn = tuple[Exchange, list[float]]
"""An answer, and its tokens' log-probabilities (nats) as they were when drawn."""


def draw(
    sampler: Sampler, prompts: dict[str, list[JsonObject]], *, version: str, n: int, sampling: SamplingParams
) -> list[Trajectory]:
    """Answers by a published version, `n` a prompt.

    Args:
        prompts: messages by prompt cluster.

    Returns:
        Trajectories nobody voted on. An answer without a log-probability for each token is dropped: a missing one
        is never invented.
    """
    if not prompts:
        return []
    clusters = list(prompts)
    answers = sampler.generate(
        [GeneratePrompt(messages=prompts[c]) for c in clusters], version=version, n=n, sampling=sampling
    )
    return [
        _trajectory(a, clusters[a.prompt_index], version, sampling)
        for a in answers
        if a.response_ids and len(a.logprobs) == len(a.response_ids)
    ]


def _trajectory(answer: GeneratedAnswer, cluster: str, version: str, sampling: SamplingParams) -> Trajectory:
    return Trajectory(
        tokens=(tuple(answer.prompt_ids), tuple(answer.response_ids)),
        logprobs=tuple(answer.logprobs),
        temperature=sampling.temperature,
        finish_reason=answer.finish_reason,
        has_stops=bool(sampling.stop),
        version=version,
        vote=None,
        cluster=cluster,
    )


def generate_unpublished(
    backbone: Backbone, prompts: Sequence[tuple[int, ...]], *, max_new_tokens: int, temperature: float, seed: int
) -> list[Exchange]:
    """One answer a prompt by the policy in training, which no engine has, from softmax(logits / temperature)."""
    drawn = draw_unpublished(backbone, prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return [exchange for exchange, _ in drawn]


@torch.no_grad()
def draw_unpublished(
    backbone: Backbone,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    adapter: str = POLICY,
) -> list[Drawn]:
    """`generate_unpublished`, each answer with its tokens' log-probabilities.

    What all prompts of a pass begin with is computed once. Prompts of unlike length are padded before what is their
    own; the mask, from which Hugging Face derives position ids, is made from lengths, since the padding token is often
    the end-of-text token.
    """
    ends = end_tokens(backbone.model)
    results: dict[int, Drawn] = {}
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), backbone.using(adapter):
        torch.manual_seed(seed)
        width = max(map(len, prompts), default=0) + max_new_tokens
        rows_a_pass = max(1, 4 * backbone.token_budget // max(width, 1))
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), rows_a_pass):
            rows = order[start : start + rows_a_pass]
            drawn = backbone.crew.told(
                _generate(backbone, [prompts[r] for r in rows], max_new_tokens, temperature, ends)
            )
            for row, (tokens, logprobs) in zip(rows, drawn, strict=True):
                answer = _cut(tokens, ends)
                results[row] = Exchange(prompts[row], answer), logprobs[: len(answer)]
    return [results[row] for row in range(len(prompts))]


def _generate(
    backbone: Backbone, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, temperature: float, ends: list[int]
) -> list[tuple[list[int], list[float]]]:
    begun, inputs = _inputs(backbone, prompts, ends)
    draw = Draw(temperature)
    out_BT = backbone.model.generate(
        **inputs,
        do_sample=False,  # `draw` leaves one token to choose from
        logits_processor=[draw],
        temperature=None,
        top_k=None,
        top_p=None,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        synced_gpus=backbone.crew.sharded,
    )
    logprobs_BT = torch.stack(draw.logprobs, dim=1)
    return list(zip(out_BT[:, begun:].tolist(), logprobs_BT.tolist(), strict=True))


def _inputs(backbone: Backbone, prompts: Sequence[tuple[int, ...]], ends: list[int]) -> tuple[int, dict[str, Any]]:
    """(where answers begin in what `generate` returns, what it is given to go on from)."""
    longest = max(map(len, prompts))
    has_encoder = backbone.model.config.is_encoder_decoder
    shared = 0 if has_encoder else backbone.shared_prefix(prompts)
    # A causal model goes on from the prompt's last token, so padding stands before what is each prompt's own. An
    # encoder may count positions from the first place, padding or not: there it stands behind.
    rows = [(p[:at], longest - len(p), p[at:]) for p in prompts for at in [len(p) if has_encoder else shared]]
    ids = [[*first, *[ends[0]] * padding, *rest] for first, padding, rest in rows]
    mask = [[1] * len(first) + [0] * padding + [1] * len(rest) for first, padding, rest in rows]
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(ids, device=backbone.device),
        "attention_mask": torch.tensor(mask, device=backbone.device),
    }
    if has_encoder:
        return 1, inputs | encoder_decoder_arguments()  # a decoder beside an encoder begins with its own start token
    if shared:
        inputs["past_key_values"] = shared_prefix.cache(backbone.model, prompts[0][:shared], len(prompts))
    return longest, inputs


def encoder_decoder_arguments() -> dict[str, Any]:
    """What `generate` must be given where there is an encoder: else it makes a cache as deep as the encoder, which
    fails where the decoder is deeper (transformers 5.19)."""
    from transformers import DynamicCache, EncoderDecoderCache

    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def _cut(tokens: list[int], ends: list[int]) -> tuple[int, ...]:
    """Up to and with the first end-of-text token."""
    first = next((i for i, t in enumerate(tokens) if t in ends), len(tokens) - 1)
    return tuple(tokens[: first + 1])


def end_tokens(model: Any) -> list[int]:
    """The model's end-of-text tokens."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    return [int(ends)] if isinstance(ends, int) else [int(e) for e in ends]
