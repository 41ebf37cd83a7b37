"""The how-tos of the integrations show the examples that tests/integrations runs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["gradio", "chainlit"])
def test_the_howto_shows_the_example(name: str) -> None:
    example = (ROOT / "clients" / "python" / "examples" / f"{name}_chat.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "howto" / f"use-{name}.md").read_text(encoding="utf-8")
    assert f"```python\n{example}```" in page


def test_both_functions_of_open_webui_use_the_same_mark() -> None:
    folder = ROOT / "clients" / "open-webui"
    lines = [(folder / f"plaudit_{name}.py").read_text(encoding="utf-8").splitlines() for name in ("models", "ratings")]
    marks = [[line for line in text if line.startswith("MARK = ")] for text in lines]
    assert marks[0] == marks[1] != []
