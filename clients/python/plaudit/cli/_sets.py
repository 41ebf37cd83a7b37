"""What the rows of known data sets say about answers. No I/O.

Plaudit learns from answers that it gave itself: only of those it knows the tokens and their probabilities. A row
therefore names its answer (`response_id`, or `chosen_id` and `rejected_id`), or is matched to one by prompt and text.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from plaudit.cli._rows import Row

_HEX_ID = re.compile(r"^(?:[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12})$")
_NAMESPACE = uuid.UUID("2f1c6d1e-5a0b-5c55-9a53-6b1f0f7d3f1a")


class BadRow(ValueError):
    """The row cannot be imported; says why."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is to be found among the stored answers to a prompt. `text` None: any answer to it."""

    prompt: str
    text: str | None


Side = str | Text
"""An answer: by its id, or by what was asked and said."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Feedback on one answer. `fields` are those of `feedback.create`."""

    answer: Side
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Preference:
    """One answer preferred to another."""

    chosen: Side
    rejected: Side
    end_user: str | None = None


Said = Vote | Preference


@dataclass(slots=True)
class Stored:
    """The stored answers by what they are found by, newest first."""

    by_text: dict[bytes, list[str]] = field(default_factory=dict)
    by_prompt: dict[bytes, list[str]] = field(default_factory=dict)

    def add(self, response_id: str, messages: Sequence[Mapping[str, Any]], content: str) -> None:
        """Note one."""
        prompt = _prompt(list(messages))
        self.by_text.setdefault(_hash(prompt, content), []).append(response_id)
        self.by_prompt.setdefault(_hash(prompt), []).append(response_id)

    def find(self, side: Side) -> str | None:
        """The id of an answer; the newest one where several say the same."""
        if isinstance(side, str):
            return side
        if side.text is None:
            return next(iter(self.by_prompt.get(_hash(side.prompt), [])), None)
        return next(iter(self.by_text.get(_hash(side.prompt, side.text), [])), None)


def alpaca(row: Row) -> Said:
    """`instruction`, `input`, `output`: what the answer should have been."""
    instruction, given = _text(row, "instruction"), row.get("input") or ""
    if not isinstance(given, str):
        raise BadRow("input: text is wanted")
    asked = f"{instruction}\n\n{given}" if given else instruction
    answer = _named(row, "response_id") or Text(_prompt(asked), None)
    return Vote(answer, {"correction": _text(row, "output"), "source": "annotator", **_user(row)})


def trl_preference(row: Row) -> Said:
    """`prompt`, `chosen`, `rejected`, as text or as messages; the prompt may be the messages that both begin with."""
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] == rejected[:-1]:
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    if not prompt and not (_named(row, "chosen_id") and _named(row, "rejected_id")):
        raise BadRow("prompt: it is missing")
    sides = [
        _named(row, f"{name}_id") or Text(_prompt(prompt), _completion(name, said))
        for name, said in (("chosen", chosen), ("rejected", rejected))
    ]
    return Preference(sides[0], sides[1], _user(row).get("end_user"))


def trl_unpaired(row: Row) -> Said:
    """`prompt`, `completion`, `label`: a thumb."""
    label = row.get("label")
    if not isinstance(label, bool):
        raise BadRow("label: true or false is wanted")
    answer = _named(row, "response_id") or Text(
        _prompt(row.get("prompt")), _completion("completion", row.get("completion"))
    )
    return Vote(answer, {"value": label, "source": "annotator", **_user(row)})


def langfuse(row: Row) -> Said:
    """A score of Langfuse. Its answer is named by `metadata.response_id`, or is the observation or trace itself."""
    name = row.get("name")
    if not isinstance(name, str) or not name.strip():
        raise BadRow("name: it is missing")
    source = "system" if str(row.get("source", "")).upper() == "EVAL" else "annotator"
    fields = {"value": _score(row), "key": name.strip(), "source": source, **_user(row)}
    if isinstance(row.get("comment"), str) and row["comment"]:
        fields["comment"] = row["comment"]
    if when := row.get("timestamp"):
        fields["occurred_at"] = _moment(when)
    return Vote(_scored(row), fields)


READERS = {"alpaca": alpaca, "trl-preference": trl_preference, "trl-unpaired": trl_unpaired, "langfuse": langfuse}


def idempotency_key(kind: str, sent: Mapping[str, Any]) -> str:
    """The same for the same words: a row that is imported twice is one row."""
    canonical = json.dumps(sent, sort_keys=True, default=str)
    return str(uuid.uuid5(_NAMESPACE, f"{kind} {canonical}"))


def _scored(row: Row) -> str:
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            metadata = None
    if isinstance(metadata, dict) and (named := _named(metadata, "response_id")):
        return named
    for name in ("observationId", "observation_id", "traceId", "trace_id"):
        given = str(row.get(name) or "")
        if given.startswith("chatcmpl-"):
            return given
        if _HEX_ID.match(given) and uuid.UUID(given).version == 7:
            return f"chatcmpl-{uuid.UUID(given)}"
    raise BadRow("no answer is named: not by metadata.response_id, and neither observation nor trace has a Plaudit id")


def _score(row: Row) -> float:
    kind, value = str(row.get("dataType") or row.get("data_type") or "NUMERIC").upper(), row.get("value")
    if kind == "CATEGORICAL":
        raise BadRow("categorical scores have no order that could be learnt from")
    words = {"true": 1.0, "false": 0.0}
    try:
        number = words[value.lower()] if isinstance(value, str) and value.lower() in words else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise BadRow("value: a number is wanted") from None
    if kind == "BOOLEAN":
        number = 1.0 if number else -1.0
    if not -1 <= number <= 1:
        raise BadRow(f"value: {number:g} lies outside -1 to 1; scale the scores first")
    return number


def _moment(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise BadRow("timestamp: an ISO 8601 time is wanted") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{name}: text is wanted")
    return value


def _named(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return value if isinstance(value, str) and value else None


def _user(row: Row) -> dict[str, str]:
    end_user = _named(row, "end_user")
    return {"end_user": end_user} if end_user else {}


def _completion(name: str, said: Any) -> str:
    """Text, or the content of the one message."""
    if isinstance(said, list) and len(said) == 1 and isinstance(said[0], dict):
        said = said[0].get("content")
    if not isinstance(said, str) or not said:
        raise BadRow(f"{name}: text, or one message, is wanted")
    return said


def _prompt(asked: Any) -> str:
    """A prompt in one form: a plain text is a single user message."""
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRow("prompt: text or a list of messages is wanted")
    return json.dumps([{"role": m.get("role"), "content": m.get("content")} for m in messages], sort_keys=True)


def _hash(*texts: str) -> bytes:
    return hashlib.sha256(json.dumps(texts).encode()).digest()[:16]
