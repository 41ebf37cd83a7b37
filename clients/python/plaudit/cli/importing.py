"""`plaudit import`: what others said of answers that this server gave."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._rows import Line, read_lines
from plaudit.cli._session import (
    REFUSED,
    USAGE,
    JsonFlag,
    complain,
    one_line,
    print_facts,
    printable,
    session_of,
    spinning,
)
from plaudit.cli._sets import READERS, BadRow, Preference, Said, Stored, Text, Vote, idempotency_key

if TYPE_CHECKING:
    from plaudit import APIStatusError, Plaudit
    from plaudit.wire.feedback import WrittenText

SHOWN = 20
"""Refused rows that are listed; all are counted."""


class Kind(StrEnum):
    """The data sets that can be read; a test keeps them and their readers alike."""

    alpaca = "alpaca"
    trl_preference = "trl-preference"
    trl_unpaired = "trl-unpaired"
    langfuse = "langfuse"


@dataclass(slots=True)
class Tally:
    """What became of the rows."""

    read: int = 0
    imported: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """How many rows each reason refused, the most frequent first."""
        return dict(Counter(reason for _, reason in self.refused).most_common())


def import_rows(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What the file holds.")],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, a JSON array, or CSV.")],
    *,
    thumb: Annotated[
        str | None, typer.Option(help="langfuse: the score of this name is the thumb; others keep their names as keys.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check only; ask the server nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Import ratings, corrections and preferences. Exit code 1: rows were refused; the others are imported."""
    session = session_of(ctx, as_json)
    if thumb is not None and kind is not Kind.langfuse:
        raise typer.BadParameter("--thumb is for scores of Langfuse")
    try:
        # Read before anything is sent: of a file that breaks off, nothing is imported.
        lines = list(read_lines(path))
    except (OSError, ValueError) as error:
        complain(f"{path}: {getattr(error, 'strerror', None) or error}")
        raise typer.Exit(USAGE) from None
    tally = Tally(len(lines))
    rows = list(_understood(kind, lines, thumb, tally))
    if dry_run:
        tally.imported = len(rows)
    else:
        # Imports are patient: they wait where the server says that they come too fast.
        with session.client(max_retries=8, retry_for=600.0) as client:
            stored = _stored(client) if any(_is_matched(said) for _, said in rows) else Stored()
            intake = Intake(client, kind, stored, tally)
            for number, said in _tracked(rows):
                intake.take(number, said)
    _report(tally, as_json=session.as_json, dry_run=dry_run)
    raise typer.Exit(REFUSED if tally.refused else 0)


def _understood(kind: Kind, lines: list[Line], thumb: str | None, tally: Tally) -> Iterator[tuple[int, Said]]:
    read = READERS[kind.value]
    for line in lines:
        try:
            if line.problem is not None:
                raise BadRow(line.problem)
            said = read(line.row)
        except BadRow as error:
            tally.refused.append((line.number, str(error)))
            continue
        if thumb is not None and isinstance(said, Vote) and said.fields.get("key") == thumb:
            said.fields["key"] = "thumb"
        yield line.number, said


def _is_matched(said: Said) -> bool:
    sides = (said.answer,) if isinstance(said, Vote) else (said.chosen, said.rejected)
    return any(isinstance(side, Text) for side in sides)


def _stored(client: "Plaudit") -> Stored:
    """An index of all stored answers; it holds hashes, not texts."""
    stored = Stored()
    for answer in spinning(client.completions.iterate(limit=100), "answers looked through"):
        stored.add(answer.id, answer.messages, answer.content)
    return stored


@dataclass(frozen=True, slots=True)
class Intake:
    """Sends rows, one by one, each under a key made of what it says: sent twice, it is done once."""

    client: "Plaudit"
    kind: Kind
    stored: Stored
    tally: Tally

    def take(self, number: int, said: Said) -> None:
        """Import a row, or note why not.

        Raises:
            PlauditError: all other rows would fail alike: the key may not, or the server is in trouble.
        """
        from plaudit import APIStatusError, AuthenticationError, InvalidRequestError, PermissionDeniedError

        try:
            self._vote(said) if isinstance(said, Vote) else self._compare(said)
        except (AuthenticationError, PermissionDeniedError):
            raise
        except APIStatusError as error:
            if error.status >= 500 or error.status == 429:
                complain(f"stopped at line {number}, {self.tally.imported} imported; the same command again goes on")
                raise
            self.tally.refused.append((number, _reason(error)))
        except (BadRow, InvalidRequestError) as error:
            self.tally.refused.append((number, printable(str(error))))
        else:
            self.tally.imported += 1

    def _vote(self, said: Vote) -> None:
        answer = self.stored.find(said.answer)
        if answer is None:
            raise BadRow("the server gave no such answer")
        key = idempotency_key(self.kind.value, {"response_id": answer, **said.fields})
        self.client.feedback.create(answer, **said.fields, idempotency_key=key)

    def _compare(self, said: Preference) -> None:
        chosen, rejected = _side(said.chosen, self.stored), _side(said.rejected, self.stored)
        if not isinstance(chosen, str) and not isinstance(rejected, str):
            raise BadRow("the server gave neither of the two answers")
        sides = {"chosen": str(chosen), "rejected": str(rejected), "end_user": said.end_user}
        key = idempotency_key(self.kind.value, sides)
        self.client.comparisons.create(chosen, rejected, end_user=said.end_user, idempotency_key=key)


def _reason(error: "APIStatusError") -> str:
    """A refusal without what is of one request only, so that equal ones count as one reason."""
    return str(error.code) if error.code else one_line(error)


def _side(side: "str | Text", stored: Stored) -> "str | WrittenText":
    from plaudit._core import ask
    from plaudit.wire.feedback import WrittenText

    found = stored.find(side)
    if found is not None:
        return found
    assert isinstance(side, Text), "an id is found as it is"
    return ask(WrittenText, text=side.text)


def _report(tally: Tally, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        refused = [{"line": number, "reason": reason} for number, reason in tally.refused]
        counts = {"read": tally.read, "imported": tally.imported, "dry_run": dry_run}
        typer.echo(json.dumps(counts | {"refused": refused, "reasons": tally.reasons()}, indent=2))
        return
    for number, reason in tally.refused[:SHOWN]:
        complain(f"line {number}: {printable(reason)}")
    if len(tally.refused) > SHOWN:
        complain(f"and {len(tally.refused) - SHOWN} more")
    done = "would be imported" if dry_run else "imported"
    print_facts([("read", str(tally.read)), (done, str(tally.imported)), ("refused", str(len(tally.refused)))])
    print_facts((f"{count:>7}", reason) for reason, count in tally.reasons().items())


def _tracked(rows: list[tuple[int, Said]]) -> Iterable[tuple[int, Said]]:
    """The rows, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(rows, "importing", console=console, disable=not console.is_terminal, transient=True)
