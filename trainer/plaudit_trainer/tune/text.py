"""Examples as token ids: the prompt as the chat template has it, and the response with the end token behind it.

The loss is on the response alone: L(θ) = −Σ log P(y_i | x_i, I_i; θ) over its tokens, the end token included, since a
model that never learnt to end does not. Nothing is cut: an example that is too long is left out and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.wire.prompts import prompt_text
from plaudit_trainer.tune.data import BadData, Example

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ '### ' + m['role'] + '\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
"""For causal models that come without a chat template; it is saved with a model that was tuned as a whole."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Row:
    """An example as token ids; `response_ids` ends with the end token."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    example: Example

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class Language:
    """How a base model reads and writes text.

    Args:
        tokenizer: of a causal model, always with a chat template: its own, or a plain one.
        ends: the tokens that end an answer; the first is the one to learn.
        is_seq2seq: an encoder reads the prompt and a decoder writes the response.
        has_own_template: whether the base model came with its chat template.
        limit: positions that the model has, None where there is no limit.
    """

    tokenizer: Any
    ends: tuple[int, ...]
    is_seq2seq: bool
    has_own_template: bool
    limit: int | None

    def encode(self, example: Example) -> Row:
        """Token ids of prompt and response.

        Raises:
            BadData: the chat template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            prompt, adds_special = prompt_text(example.as_messages(), self.tokenizer, has_encoder=self.is_seq2seq)
        except TemplateError as error:
            raise BadData(
                f"{example.origin}: the base model's chat template refuses this conversation: {error}"
            ) from error
        prompt_ids = self.tokenizer(prompt, add_special_tokens=adds_special)["input_ids"]
        response_ids = self.tokenizer(example.response, add_special_tokens=False)["input_ids"]
        return Row(tuple(prompt_ids), (*response_ids, self.ends[0]), example)


def read_language(base: Path) -> Language:
    """The tokenizer of a model folder and what goes with it; no weights are read.

    Raises:
        BadData: the folder has no tokenizer, or the model has no end token to learn.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not any((base / name).is_file() for name in _TOKENIZERS):  # or an empty tokenizer would be made up
        raise BadData(f"--base {base}: no tokenizer there ({', '.join(_TOKENIZERS)})")
    try:
        config = AutoConfig.from_pretrained(base)
        tokenizer: Any = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadData(f"--base {base}: model type or tokenizer cannot be read ({reason})") from error
    is_seq2seq = bool(config.is_encoder_decoder)
    has_own_template = tokenizer.chat_template is not None
    if not has_own_template and not is_seq2seq:
        tokenizer.chat_template = PLAIN_TEMPLATE
    ends = _ends(base, config, tokenizer)
    if not is_seq2seq:
        ends = _turn_end_first(tokenizer, ends)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    limit = None if is_seq2seq else getattr(config, "max_position_embeddings", None)
    return Language(tokenizer, ends, is_seq2seq, has_own_template, limit)


def encode_all(examples: Sequence[Example], language: Language, max_length: int) -> tuple[list[Row], list[int]]:
    """(rows of at most `max_length` tokens of prompt and response together, their places in `examples`)."""
    longest = max_length if language.limit is None else min(max_length, language.limit)
    encoded = [language.encode(example) for example in examples]
    kept = [place for place, row in enumerate(encoded) if len(row) <= longest]
    return [encoded[place] for place in kept], kept


def _ends(base: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    from transformers import GenerationConfig

    given = None
    if (base / "generation_config.json").is_file():
        given = GenerationConfig.from_pretrained(base).eos_token_id
    if given is None:
        given = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    if given is None:
        raise BadData(f"--base {base}: neither model nor tokenizer names an end-of-text token (eos_token_id)")
    return (int(given),) if isinstance(given, int) else tuple(int(token) for token in given)


def _turn_end_first(tokenizer: Any, ends: tuple[int, ...]) -> tuple[int, ...]:
    """The end tokens with the one first that the chat template puts behind an answer (Llama 3 has three of them)."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered: str = tokenizer.apply_chat_template(turns, tokenize=False)
    behind = tokenizer(rendered.rpartition("b")[2], add_special_tokens=False)["input_ids"]
    first = next((token for token in behind if token in ends), ends[0])
    return (first, *(token for token in ends if token != first))
