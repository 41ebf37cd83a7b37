"""Small sets of demonstrations for tests of the tuning."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ANIMALS = ["cat", "dog", "cow", "pig", "hen", "fox", "owl", "bee", "ant", "elk"]


def alpaca(instruction: str = "say hello", given: str = "", output: str = "hello", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": given, "output": output} | more


def task(instruction: str, *pairs: tuple[str, str], label: bool | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "instruction": instruction,
        "instances": [{"input": given, "output": output} for given, output in pairs],
    }
    return row if label is None else row | {"is_classification": label}


def chat(*turns: str, system: str | None = None) -> dict[str, Any]:
    """Turns by user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": said} for i, said in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def write(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """A file of JSON lines; texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def zoo() -> list[dict[str, Any]]:
    """Ten instructions to generate, ten to classify, a chat: all three shapes, and rules a tiny model can learn."""
    said = [alpaca(f"say {animal} twice now", output=f"{animal} {animal}") for animal in ANIMALS]
    judged = [task(f"is the {animal} small", ("today", "yes"), ("now", "yes"), label=True) for animal in ANIMALS]
    return [*said, *judged, chat("hello there", "hi", "more please", "no")]
