"""What is public is documented: methods of the SDK, commands and options of the CLI."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from plaudit import Plaudit
from plaudit._binding import Resource, endpoint, pages, procedure, streaming
from plaudit.cli import app

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
KINDS = (endpoint, pages, procedure, streaming)


def methods() -> list[str]:
    """Every method of the client and of its resources, as one would write it behind `client.`."""
    with Plaudit("http://127.0.0.1:9", "plk_x") as client:
        groups = {"": client} | {f"{n}.": g for n, g in vars(client).items() if isinstance(g, Resource)}
    return sorted(
        prefix + name
        for prefix, group in groups.items()
        for kind in type(group).__mro__
        for name, value in vars(kind).items()
        if isinstance(value, KINDS)
    )


def commands(command: Any, path: str = "plaudit") -> dict[str, list[str]]:
    """Each command's path and its options."""
    found = {path: [option for p in command.params for option in p.opts if option.startswith("--")]}
    for name, child in getattr(command, "commands", {}).items():
        found |= commands(child, f"{path} {name}")
    return found


def test_the_list_of_methods_is_not_empty() -> None:
    assert {"chat.stream", "versions.wait", "feedback.rate", "rollback", "training.lease"} <= set(methods())


@pytest.mark.parametrize("method", methods())
def test_each_method_is_in_the_reference(method: str) -> None:
    assert f"`{method}" in (REFERENCE / "sdk.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "options"), commands(typer.main.get_command(app)).items())
def test_each_command_and_option_is_in_the_reference(path: str, options: list[str]) -> None:
    text = section(path.split()[1]) if " " in path else (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert path.rsplit(maxsplit=1)[-1] in text
    ours = set(options) - {"--install-completion", "--show-completion", "--help", "--json"}
    assert {option for option in ours if option not in text} == set()


def section(verb: str) -> str:
    """What the reference says under the heading that names a command; empty where none does."""
    parts = re.split(r"^## ", (REFERENCE / "cli.md").read_text(encoding="utf-8"), flags=re.M)
    return next((part for part in parts if verb in part.partition("\n")[0].split(", ")), "")
