"""A Hugging Face model, with an encoder or without, that reads prompts, draws step by step, and scores.

Shapes: B rows, S prompt positions (padded), T answer positions, V vocabulary.

`response_ids` of a model with an encoder are what its decoder drew, the end-of-text token included, without the start
token that its decoder is begun with.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.wire.base import JsonObject
from plaudit.wire.prompts import prompt_text
from plaudit_server.engine.hf.lora import Adapters


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows that have been read and are being answered in step.

    Args:
        mask_BS: 1 where a prompt's position (for a model without an encoder: or a drawn token's) is real.
        encoded: the encoder's output; None without an encoder.
        cache: keys and values, transformers' own.
        next_B: position of the token to come; used only without an encoder.
    """

    mask_BS: Tensor
    encoded: Any
    cache: Any
    next_B: Tensor


class ServedModel:
    """The model, its tokenizer and its resident adapters. Not thread-safe: one thread makes all passes.

    Args:
        folder: Hugging Face folder.
        dtype: float32 or bfloat16; None: float32 on the CPU (an adapter's small change is rounded away in
            bfloat16), else bfloat16.
        device: `cpu`, `cuda`, …; None: a GPU where there is one.
        max_model_len: longest prompt and answer together.
    """

    def __init__(self, folder: Path, *, dtype: str | None, device: str | None, max_model_len: int) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        config = AutoConfig.from_pretrained(folder)
        self.has_encoder = bool(config.is_encoder_decoder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = dtype or ("float32" if self.device.type == "cpu" else "bfloat16")
        architecture = AutoModelForSeq2SeqLM if self.has_encoder else AutoModelForCausalLM
        loaded = architecture.from_pretrained(folder, dtype=getattr(torch, kind))
        self.model: Any = loaded.to(self.device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.adapters = Adapters(self.model)
        self.limit = min(max_model_len, _positions(config) or max_model_len)
        self.ends = _end_tokens(self.model)
        self._start = _start_token(self.model) if self.has_encoder else -1
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters

    def prompt_ids(self, messages: Sequence[JsonObject]) -> list[int]:
        """Tokens of a conversation, ready to be answered.

        Raises:
            ValueError: messages that are not text, or that the chat template refuses.
        """
        text, adds_special = prompt_text(messages, self.tokenizer, has_encoder=self.has_encoder)
        ids: list[int] = self.tokenizer(text, add_special_tokens=adds_special)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    # Drawing

    @torch.inference_mode()
    def read(self, prompts: Sequence[Sequence[int]], adapter: int | None) -> tuple[Reading, Tensor]:
        """Read prompts together; logits (B, V) of each answer's first token."""
        with self.adapters.using(adapter):
            if self.has_encoder:
                encoded, mask_BS = self._encode(prompts)
                reading = Reading(mask_BS, encoded, None, torch.zeros(0))
                start_B1 = torch.full((len(prompts), 1), self._start, device=self.device)
                return self._pass(reading, start_B1)
            ids_BS, mask_BS = self._padded(prompts, left=True)
            reading = Reading(mask_BS, None, None, mask_BS.sum(1))
            return self._pass(reading, ids_BS, (mask_BS.cumsum(1) - 1).clamp(min=0))

    @torch.inference_mode()
    def step(self, reading: Reading, tokens: Sequence[int], adapter: int | None) -> tuple[Reading, Tensor]:
        """Go on by one token a row; logits (B, V) of the next."""
        tokens_B1 = torch.tensor(tokens, device=self.device)[:, None]
        if self.has_encoder:
            with self.adapters.using(adapter):
                return self._pass(reading, tokens_B1)
        mask_BS = torch.cat([reading.mask_BS, torch.ones_like(tokens_B1)], dim=1)
        grown = replace(reading, mask_BS=mask_BS, next_B=reading.next_B + 1)
        with self.adapters.using(adapter):
            return self._pass(grown, tokens_B1, reading.next_B[:, None])

    @torch.inference_mode()
    def keep(self, reading: Reading, rows: Sequence[int]) -> Reading:
        """Only these rows: the others have ended."""
        rows_K = torch.tensor(rows, device=self.device)
        reading.cache.batch_select_indices(rows_K)
        encoded = None if reading.encoded is None else (reading.encoded[0][rows_K],)
        next_B = reading.next_B if self.has_encoder else reading.next_B[rows_K]
        return Reading(reading.mask_BS[rows_K], encoded, reading.cache, next_B)

    def _pass(self, reading: Reading, ids_BT: Tensor, positions_BT: Tensor | None = None) -> tuple[Reading, Tensor]:
        if self.has_encoder:
            inputs = {"decoder_input_ids": ids_BT, "encoder_outputs": reading.encoded}
        else:
            inputs = {"input_ids": ids_BT}
            if self._takes_positions:
                inputs["position_ids"] = positions_BT
        out = self.model(**inputs, attention_mask=reading.mask_BS, past_key_values=reading.cache, use_cache=True)
        return replace(reading, cache=out.past_key_values), out.logits[:, -1]

    def _encode(self, prompts: Sequence[Sequence[int]]) -> tuple[tuple[Tensor], Tensor]:
        ids_BS, mask_BS = self._padded(prompts, left=False)
        encoded_BSD = self.model.get_encoder()(input_ids=ids_BS, attention_mask=mask_BS)[0]
        return (encoded_BSD,), mask_BS

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, S). The mask is made from lengths: padding and end-of-text are often the same token."""
        longest = max(map(len, rows))
        ids, mask = [], []
        for row in rows:
            gap = [0] * (longest - len(row))
            ids.append([*gap, *row] if left else [*row, *gap])
            mask.append([*gap, *[1] * len(row)] if left else [*[1] * len(row), *gap])
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    # Scoring

    @torch.inference_mode()
    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: int | None) -> list[list[float]]:
        """Log-probability (nats, float32, temperature 1) of each response token of (prompt, response) pairs."""
        with self.adapters.using(adapter):
            logits_BTV = self._answer_logits(rows)
        result = []
        for logits_TV, (prompt, response) in zip(logits_BTV, rows, strict=True):
            first = 0 if self.has_encoder else len(prompt) - 1
            tokens_R = torch.tensor(response, device=self.device)
            chosen_RV = logits_TV[first : first + len(response)].float()
            picked_R = chosen_RV.gather(1, tokens_R[:, None])[:, 0] - chosen_RV.logsumexp(-1)
            result.append(picked_R.tolist())
        return result

    def _answer_logits(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
        if self.has_encoder:
            encoded, mask_BS = self._encode([prompt for prompt, _ in rows])
            begun_BT, _ = self._padded([[self._start, *response[:-1]] for _, response in rows], left=False)
            logits: Tensor = self.model(
                encoder_outputs=encoded, attention_mask=mask_BS, decoder_input_ids=begun_BT, use_cache=False
            ).logits
            return logits
        ids_BT, mask_BT = self._padded([[*prompt, *response] for prompt, response in rows], left=False)
        logits = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        return logits


def _positions(config: Any) -> int | None:
    """How many positions the model has learned; None where it has no such bound (T5's are relative)."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _end_tokens(model: nn.Module) -> frozenset[int]:
    generation, config = getattr(model, "generation_config", None), model.config
    ends = getattr(generation, "eos_token_id", None)
    ends = getattr(config, "eos_token_id", None) if ends is None else ends
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def _start_token(model: Any) -> int:
    for source in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(found := getattr(source, name, None), int):
                return found
    raise ValueError("the model's config names no decoder_start_token_id, so its decoder cannot be begun")
