"""Demonstrations from JSON lines: Alpaca rows, chats (`messages`) and Self-Instruct tasks, mixed as one likes.

Every line is checked before any is used. A line that cannot be used is named with its number and what is wrong with
it; nothing is guessed or half read.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 20
"""Bad lines that a message lists."""

_SHAPES = (
    "{instruction, input, output} (Alpaca), {messages: [{role, content}, …]} or "
    "{instruction, instances: [{input, output}, …], is_classification} (Self-Instruct)"
)


class BadData(Exception):
    """The data cannot be tuned on; the message names the mend."""


class _BadRow(Exception):
    """One row cannot be used."""


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration.

    Args:
        messages: (role, content) of the turns before the response; the last is the user's.
        response: what the model is to say.
        instruction: what examples are grouped by: all inputs to one instruction belong together.
        is_classification: the response is one of a few labels, to be judged by exact match.
        origin: `file:line`.
    """

    messages: tuple[tuple[str, str], ...]
    response: str
    instruction: str
    is_classification: bool
    origin: str

    def as_messages(self) -> list[dict[str, Any]]:
        """The prompt as a chat template takes it."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files held.

    Args:
        examples: without duplicates, in the order of the files.
        rows: lines that were read, empty ones apart.
        shapes: rows of each shape.
        bad: (`file:line`, what is wrong) of the rows left out.
        duplicates: examples left out since their prompt came before.
        contradictions: how many of those had another response.
    """

    examples: list[Example]
    rows: int
    shapes: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0
    contradictions: int = 0


def load(paths: Sequence[Path], *, skip_bad: bool = False) -> Loaded:
    """Read, check and deduplicate.

    Args:
        paths: files of JSON lines; a folder stands for its `*.jsonl`.
        skip_bad: leave bad lines out instead of refusing all.

    Raises:
        BadData: a path is missing, a line is bad (unless they are skipped), or nothing is left.
    """
    found: list[Example] = []
    bad: list[tuple[str, str]] = []
    shapes: dict[str, int] = {}
    rows = 0
    for path in files(paths):
        for number, raw in _lines(path):
            rows += 1
            origin = f"{path.name}:{number}"
            try:
                shape, examples = parse(raw, origin)
            except _BadRow as error:
                bad.append((origin, str(error)))
                continue
            shapes[shape] = shapes.get(shape, 0) + 1
            found += examples
    if bad and not skip_bad:
        raise BadData(_listed(bad))
    if not found:
        raise BadData(f"no usable row in {', '.join(str(p) for p in paths)} ({len(bad)} bad ones)")
    examples, duplicates, contradictions = _deduplicated(found)
    return Loaded(examples, rows, shapes, bad, duplicates, contradictions)


def normalised(text: str) -> str:
    """Text less what does not change its meaning: case, kinds of space, compatibility forms, closing punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).rstrip(" .!?:;,")


# One line


def parse(raw: bytes, origin: str) -> tuple[str, list[Example]]:
    """The shape of one line and the examples in it. Raises an error that says what is wrong with the line."""
    row = _object(raw)
    if "messages" in row:
        return "messages", _chat(row, origin)
    if "instances" in row:
        return "instances", _task(row, origin)
    if "instruction" in row and "output" in row:
        return "alpaca", [_alpaca(row, origin)]
    keys = ", ".join(sorted(row)[:8]) or "none"
    raise _BadRow(f"unknown shape with the keys {keys}; known are {_SHAPES}")


def _object(raw: bytes) -> dict[str, Any]:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadRow(f"not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        if raw.strip() in (b"[", b"{"):
            raise _BadRow("JSON over several lines; one object a line is wanted (jq -c '.[]' FILE makes it)") from error
        raise _BadRow(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise _BadRow("not JSON that can be read: nested too deeply") from error
    if isinstance(row, list):
        raise _BadRow("a JSON array; one object a line is wanted (jq -c '.[]' FILE makes it)")
    if not isinstance(row, dict):
        raise _BadRow(f"a JSON {type(row).__name__}, not an object")
    return row


def _alpaca(row: dict[str, Any], origin: str) -> Example:
    instruction = _text(row, "instruction")
    given = _text(row, "input", optional=True)
    return _demonstration(instruction, given, _text(row, "output"), _is_classification(row), origin)


def _task(row: dict[str, Any], origin: str) -> list[Example]:
    instruction, is_classification = _text(row, "instruction"), _is_classification(row)
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise _BadRow("instances is not a list with at least one {input, output}")
    examples = []
    for index, instance in enumerate(instances):
        where = f"instances[{index}]"
        if not isinstance(instance, dict):
            raise _BadRow(f"{where} is not an object")
        given, output = _text(instance, "input", where, optional=True), _text(instance, "output", where)
        examples.append(_demonstration(instruction, given, output, is_classification, origin))
    return examples


def _demonstration(instruction: str, given: str, output: str, is_classification: bool, origin: str) -> Example:
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return Example((("user", prompt),), output, instruction, is_classification, origin)


def _chat(row: dict[str, Any], origin: str) -> list[Example]:
    """An example for each of the assistant's turns, with all turns before it as its prompt."""
    given = row["messages"]
    if not isinstance(given, list) or not given:
        raise _BadRow("messages is not a list with at least one turn")
    turns = [_turn(turn, f"messages[{index}]") for index, turn in enumerate(given)]
    spoken = turns[1:] if turns[0][0] == "system" else turns
    wanted = ("user", "assistant")
    for index, (role, _) in enumerate(spoken):
        if role != wanted[index % 2]:
            at = index + len(turns) - len(spoken)
            raise _BadRow(
                f"messages[{at}] is the {role}'s; after an optional system turn, user and assistant alternate"
            )
    if len(spoken) < 2 or len(spoken) % 2:
        raise _BadRow("messages does not end with the assistant's answer")
    first, is_classification = spoken[0][1], _is_classification(row)
    ends = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
    return [Example(tuple(turns[:end]), turns[end][1], first, is_classification, origin) for end in ends]


def _turn(turn: Any, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise _BadRow(f"{where} is not an object")
    role = turn.get("role")
    if role not in ("system", "user", "assistant"):
        raise _BadRow(f"{where} has the role {role!r}; system, user and assistant are known")
    return role, _text(turn, "content", where)


def _text(row: dict[str, Any], key: str, where: str = "", *, optional: bool = False) -> str:
    name = f"{where}.{key}" if where else key
    value = row.get(key)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise _BadRow(f"{name} is missing" if value is None else f"{name} is a {type(value).__name__}, not a text")
    if not value.strip() and not optional:
        raise _BadRow(f"{name} is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _BadRow(f"{name} has a lone surrogate, which is no text")
    return value.strip()


def _is_classification(row: dict[str, Any]) -> bool:
    value = row.get("is_classification")
    if value is not None and not isinstance(value, bool):
        raise _BadRow(f"is_classification is {value!r}, not true or false")
    return bool(value)


# Files


def files(paths: Sequence[Path]) -> list[Path]:
    """The files that paths stand for. Raises BadData where one is missing."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.jsonl"))
            if not inside:
                raise BadData(f"{path} holds no *.jsonl")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise BadData(f"{path}: no such file")
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1, and lines that are not empty."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if line.strip():
                    yield number, line
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error


def _deduplicated(examples: Sequence[Example]) -> tuple[list[Example], int, int]:
    """(the first example of each prompt, how many others there were, how many of them contradict it)."""
    kept: dict[tuple[tuple[str, str], ...], Example] = {}
    contradictions = 0
    for example in examples:
        key = tuple((role, normalised(content)) for role, content in example.messages)
        first = kept.setdefault(key, example)
        contradictions += first is not example and normalised(first.response) != normalised(example.response)
    return list(kept.values()), len(examples) - len(kept), contradictions


def _listed(bad: Sequence[tuple[str, str]]) -> str:
    lines = [f"{origin}: {what}" for origin, what in bad[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"… and {len(bad) - SHOWN} more")
    plural = "line is" if len(bad) == 1 else "lines are"
    return "\n".join([f"{len(bad)} {plural} bad; mend, or leave out with --skip-bad:", *lines])
