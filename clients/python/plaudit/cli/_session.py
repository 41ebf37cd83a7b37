"""What every command shares: the client it speaks through, how it prints, how it ends."""

import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel
    from rich.table import Table

    from plaudit import Plaudit, PlauditError
    from plaudit._retry import Clock

T = TypeVar("T")
M = TypeVar("M", bound="BaseModel")

REFUSED, USAGE, UNREACHABLE = 1, 2, 3
"""Exit codes: the server refused or failed, the command was wrong, nobody answered."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@dataclass(frozen=True, slots=True)
class Session:
    """One invocation. `transport` and `clock` replace the network and time in tests."""

    url: str | None = None
    key: str | None = None
    as_json: bool = False
    transport: "httpx.BaseTransport | None" = None
    clock: "Clock | None" = None

    def client(self, *, max_retries: int = 2, retry_for: float = 120.0, timeout: float = 600.0) -> "Plaudit":
        """A client of the server that the options name. A person waits: two tries more, then say so."""
        from plaudit import Plaudit

        return Plaudit(
            self.url,
            self.key,
            max_retries=max_retries,
            retry_for=retry_for,
            timeout=timeout,
            transport=self.transport,
            clock=self.clock,
        )

    def sleep(self, seconds: float) -> None:
        """Wait."""
        (time.sleep if self.clock is None else self.clock.sleep)(seconds)


def session_of(ctx: typer.Context, as_json: bool = False) -> Session:
    """This invocation's session; `--json` counts before the command and behind it."""
    session: Session = ctx.find_root().obj
    return replace(session, as_json=session.as_json or as_json)


def listing_group(text: str, list_all: "Callable[..., None]") -> typer.Typer:
    """A group of commands that lists when it is called by its name alone, and as `list`.

    Args:
        text: what its help says.
        list_all: the command; all its arguments but `ctx` and `as_json` have defaults.
    """
    group = typer.Typer(help=text, invoke_without_command=True)

    @group.callback()
    def default(ctx: typer.Context, as_json: JsonFlag = False) -> None:
        if ctx.invoked_subcommand is None:
            list_all(ctx, as_json=as_json)

    group.command("list")(list_all)
    return group


def exit_code(error: "PlauditError") -> int:
    """The exit code that tells scripts what kind of failure it was."""
    from plaudit import APIConnectionError, ConfigurationError, InvalidRequestError

    if isinstance(error, APIConnectionError):
        return UNREACHABLE
    return USAGE if isinstance(error, ConfigurationError | InvalidRequestError) else REFUSED


def one_line(error: "PlauditError") -> str:
    """The error as a line for the terminal, with what one would ask the server's log for."""
    request_id = getattr(error, "request_id", None)
    text = " ".join(printable(error.message).split())
    return f"{text} [request {request_id}]" if request_id else text


def complain(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"plaudit: {text}", err=True)


def printable(text: str) -> str:
    """Text without control characters: what a model or a user wrote must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf"))


def json_line(value: "BaseModel") -> str:
    """A model on one line of JSON: ASCII, since what is in a text must not steer the terminal here either."""
    return value.model_dump_json(ensure_ascii=True)


def print_json(value: "BaseModel | Sequence[BaseModel]") -> None:
    """A model as one JSON object; several as an array."""
    if isinstance(value, Sequence):
        typer.echo("[" + ",\n ".join(map(json_line, value)) + "]")
    else:
        typer.echo(value.model_dump_json(indent=2, ensure_ascii=True))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """A table whose cells cannot steer the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table, or a sentence where there is nothing to show."""
    from rich.console import Console

    table = make_table(columns, rows)
    if not table.row_count:
        typer.echo(empty)
        return
    # Into a pipe or a file nothing is cut to a terminal's width.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240).print(table)


def print_listing(
    session: Session, found: Sequence[M], columns: Sequence[str], row: "Callable[[M], Sequence[str]]", *, empty: str
) -> None:
    """What a listing found: JSON where that was asked for, else a table."""
    print_json(found) if session.as_json else print_table(columns, map(row, found), empty=empty)


def print_done(session: Session, value: "BaseModel", told: str) -> None:
    """What a change led to: JSON where that was asked for, else a sentence."""
    print_json(value) if session.as_json else typer.echo(told)


def spinning(items: Iterable[T], what: str) -> Iterator[T]:
    """The items, counted on stderr where that is a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(f"0 {what}") as status:
        for count, item in enumerate(items, start=1):
            if count % 100 == 0:
                status.update(f"{count} {what}")
            yield item


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Name and value, a line each; empty values are left out."""
    shown = [(name, printable(value)) for name, value in facts if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        typer.echo(f"{name:<{width}}  {value}")


def figure(value: float | None, digits: int = 3) -> str:
    """A number for people."""
    return "" if value is None else f"{value:.{digits}g}"
