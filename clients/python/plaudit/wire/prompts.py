"""How a conversation becomes the text that a model reads: the same on the server and in the trainer.

A tokenizer with a chat template is asked for its own form. One without (T5 and its kin were trained on bare
instructions) gets the plain form below.
"""

from collections.abc import Sequence
from typing import Any

from plaudit.wire.base import JsonObject

_SPEAKERS = {"user": "User", "assistant": "Assistant"}


def prompt_text(messages: Sequence[JsonObject], tokenizer: Any, *, has_encoder: bool) -> tuple[str, bool]:
    """The text to tokenise, and whether the tokenizer shall add its special tokens.

    A chat template writes special tokens itself; but an encoder's input ends with the end-of-text token that the
    tokenizer adds, template or not.

    Args:
        messages: OpenAI's, the last one to be answered.
        tokenizer: a Hugging Face tokenizer.
        has_encoder: whether the model reads prompts with an encoder.

    Raises:
        ValueError: a message is not text. A chat template may raise more: jinja2's errors.
    """
    if getattr(tokenizer, "chat_template", None):
        texts = [{**message, "content": message_text(message)} for message in messages]
        return str(tokenizer.apply_chat_template(texts, add_generation_prompt=True, tokenize=False)), has_encoder
    return plain_prompt(messages), True


def plain_prompt(messages: Sequence[JsonObject]) -> str:
    r"""The plain form: system messages first, then the turns, parts divided by a blank line.

    A single user message stands as it is, so that a model trained on bare instructions reads a bare instruction.
    Several turns are written `User: …` and `Assistant: …`, line by line, and end with `Assistant:`.

    Raises:
        ValueError: a message is not text.
    """
    rules = [message_text(m) for m in messages if m.get("role") in ("system", "developer")]
    turns = [m for m in messages if m.get("role") not in ("system", "developer")]
    if len(turns) == 1 and turns[0].get("role") == "user":
        said = message_text(turns[0])
    else:
        lines = [f"{_SPEAKERS.get(str(m.get('role')), str(m.get('role')))}: {message_text(m)}" for m in turns]
        said = "\n".join([*lines, "Assistant:"])
    return "\n\n".join([*rules, said])


def message_text(message: JsonObject) -> str:
    """A message's text; OpenAI's content parts are joined.

    Raises:
        ValueError: a part is not text.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = (
        [part.get("text") if isinstance(part, dict) else None for part in content] if isinstance(content, list) else []
    )
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("a message's content must be text; images and sound cannot be read")
    return "".join(str(text) for text in texts)
