"""Error codes, commands and options of processes, targets of make, variables of scripts: all are documented."""

import argparse
import ast
import re
from pathlib import Path

import pytest

from plaudit.environment import ELSEWHERE
from plaudit_server import __main__ as server
from plaudit_trainer import __main__ as trainer
from plaudit_trainer.tune.command import parser as tune_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ERRORS = DOCS / "reference" / "errors.md"


def strings(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def codes_of(source: str) -> set[str]:
    """What is passed as `code=`, by a constant's name too, and what is the default of a parameter `code`."""
    found: set[str] = set()
    tree = ast.parse(source)
    named = {
        target.id: strings(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            found |= {s for value in given for s in strings(value)}
            found |= {
                s
                for value in given
                for each in ast.walk(value)
                if isinstance(each, ast.Name)
                for s in named.get(each.id, ())
            }
        elif isinstance(node, ast.arguments):
            defaults = zip(node.kwonlyargs, node.kw_defaults, strict=True)
            found |= {s for name, value in defaults if name.arg == "code" and value is not None for s in strings(value)}
    return {code for code in found if re.fullmatch(r"[a-z][a-z_]+", code)} - {"type"}  # taken from the engine's error


def documented_codes() -> set[str]:
    rows = [line for line in ERRORS.read_text(encoding="utf-8").splitlines() if re.match(r"\| [a-z]", line)]
    return {code for row in rows for code in row.split("|")[1].strip().split(", ")} - {"code", "error"}


def test_every_error_code_and_none_that_does_not_exist() -> None:
    sources = (ROOT / "server" / "plaudit_server").rglob("*.py")
    used = set().union(*(codes_of(path.read_text(encoding="utf-8")) for path in sources))
    assert {"token_used", "engine_unavailable", "rate_limit_exceeded", "stable_unproven"} <= used
    assert documented_codes() == used


def test_a_code_is_found_wherever_it_stands() -> None:
    source = 'N = "three"\ndef f(*, code: str = "a_default"): ...\nraise E("x", code="one" if y else N)\n'
    assert codes_of(source) == {"a_default", "one", "three"}


def section(title: str) -> str:
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    return next(part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(title))


def words_of(parser: argparse.ArgumentParser) -> set[str]:
    """Commands and long options of a program."""
    found = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(action.choices for action in commands)) - {"--help"}


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (server._parser(), section("The processes")),
        (trainer._parser(), section("The processes")),
        (tune_parser(), (DOCS / "howto" / "tune.md").read_text(encoding="utf-8")),
    ],
    ids=["server", "trainer", "tune"],
)
def test_every_command_and_option_of_a_process(program: argparse.ArgumentParser, text: str) -> None:
    assert {word for word in words_of(program) if f"`{word}" not in text and f" {word}" not in text} == set()


def test_every_target_of_make() -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*?## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {target for target in targets if f"`{target}`" not in text} == set()


def test_every_variable_that_is_no_setting() -> None:
    told = "".join(path.read_text(encoding="utf-8") for path in [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"])
    assert {name for name in ELSEWHERE if not re.search(rf"`PLAUDIT_{name}[`=]", told)} == set()
