"""The fenced blocks of README and docs, the shell commands in them, and the parsers that those commands are for."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import dropwhile
from pathlib import Path
from typing import Any

import typer.main

from plaudit.cli import app
from plaudit_server import __main__ as server
from plaudit_trainer import __main__ as trainer
from plaudit_trainer.tune.command import parser as tune_parser

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)(?P=ticks)[ \t]*$", re.M | re.S
)
ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
SEPARATORS = "|&;()<>\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `name` (page and first line) is how tables of the tests call it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        first = next((line for line in self.text.splitlines() if line.strip()), "")
        return f"{self.page}: {first}"

    @property
    def shell(self) -> str:
        """The commands of a shell block; of a console, the lines behind `$ `."""
        if self.language != "console":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))


def pages() -> list[Path]:
    """Whatever people read."""
    top = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "clients").glob("*/README.md"))]


def blocks_of(path: Path) -> list[Block]:
    """The blocks of one page, in order."""
    return blocks_in(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())


def blocks_in(text: str, page: str) -> list[Block]:
    """The blocks of a text, in order."""
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["info"].split()[0] if found["info"].strip() else "",
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.M),
        )
        for found in FENCE.finditer(text)
    ]


@cache
def all_blocks() -> list[Block]:
    """Every block of every page."""
    return [block for page in pages() for block in blocks_of(page)]


def prose(path: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def commands(shell: str) -> Iterator[list[str]]:
    """The simple commands of a script, as words, assignments in front left out. Not a shell: enough for docs."""
    plain = re.sub(r"(^|\s)#.*$", r"\1", shell.replace("\\\n", " "), flags=re.M)
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=SEPARATORS)
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    words: list[str] = []
    for token in [*lexer, "\n"]:
        if not set(token) <= set(SEPARATORS):
            words.append(token)
            continue
        if real := list(dropwhile(ASSIGNMENT.match, words)):
            yield real
        words = []


def check(words: list[str]) -> bool:
    """Hold a command to the real parser of its program. False where the program is not ours.

    Raises:
        ValueError: the program does not take these words.
    """
    program, *rest = words
    if program.rsplit("/", 1)[-1] == "plaudit":
        _check_plaudit(rest)
    elif program == "make":
        _check_make(rest)
    elif "plaudit_trainer" in words:
        given = words[words.index("plaudit_trainer") + 1 :]
        _parse(tune_parser() if given[:1] == ["tune"] else trainer._parser(), given[given[:1] == ["tune"] :])
    elif "plaudit_server" in words:
        _parse(server._parser(), words[words.index("plaudit_server") + 1 :])
    else:
        return False
    return True


def _parse(parser: Any, words: list[str]) -> None:
    try:
        parser.parse_args(words)
    except SystemExit as ended:
        raise ValueError(f"{parser.prog} does not take {words}") from ended


def _check_plaudit(words: list[str]) -> None:
    try:
        context = typer.main.get_command(app).make_context("plaudit", list(words))
        while hasattr(context.command, "resolve_command"):
            rest = [*context._protected_args, *context.args]
            if not rest:
                return
            name, command, rest = context.command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
    except Exception as error:  # the parser's errors have no common base that is public
        raise ValueError(f"plaudit {' '.join(words)}: {error}") from error
    if context.command_path == "plaudit tune":
        _parse(tune_parser(), context.args)


def _check_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", text, flags=re.M))
    if unknown := {word for word in words if "=" not in word} - targets:
        raise ValueError(f"there is no make {unknown}")
