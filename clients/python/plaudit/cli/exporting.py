"""`plaudit export`: answers and what was said of them, as JSON Lines or CSV."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from plaudit.cli._session import REFUSED, JsonFlag, complain, session_of, spinning

if TYPE_CHECKING:
    from plaudit import Plaudit
    from plaudit.wire.chat import StoredCompletion
    from plaudit.wire.feedback import Feedback

Row = dict[str, Any]

FORMULA = "=+-@＝＋－＠\t\r"
"""A cell that begins so is a formula to spreadsheets (https://owasp.org/www-community/attacks/CSV_Injection)."""

_BIDI = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(0x7F, 0xA0)])


class What(StrEnum):
    """What can be exported."""

    answers = "answers"
    feedback = "feedback"
    trl_unpaired = "trl-unpaired"
    trl_preference = "trl-preference"


class Format(StrEnum):
    """How it is written."""

    jsonl = "jsonl"
    csv = "csv"


def export(
    ctx: typer.Context,
    what: Annotated[What, typer.Argument(help="What to export.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new file; else stdout.")] = None,
    format: Annotated[Format, typer.Option(help="JSON Lines or CSV.")] = Format.jsonl,
    version: Annotated[str | None, typer.Option(help="Only what this version said, such as v42.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this time on: ISO 8601, UTC without a zone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Export answers, feedback or training sets, row by row. In CSV no cell is a formula."""
    session = session_of(ctx, as_json)
    if session.as_json and format is Format.csv:
        raise typer.BadParameter("--json is JSON Lines: leave out --format csv")
    _check_free(output, force=force)
    filters = {"version": version, "since": _moment(since)}
    with session.client() as client:
        rows = SOURCES[what](client, filters)
        counted = rows if output is None else spinning(rows, "rows")
        try:
            with _opened(output) as file:
                count = WRITERS[format](counted, file)
        except BrokenPipeError:
            raise
        except OSError as error:
            complain(f"{output or 'stdout'}: {error.strerror}")
            raise typer.Exit(REFUSED) from None
    if output is not None:
        typer.echo(f"{count} rows in {output}", err=True)


def _check_free(output: Path | None, *, force: bool) -> None:
    if output is None:
        return
    if not output.parent.is_dir() or output.is_dir():
        raise typer.BadParameter(f"{output}: no file can be there")
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} exists: name another, or give --force")


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--since: {text!r} is no ISO 8601 time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Stdout, or a file for its owner alone that has its name only once it is whole."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        part.touch(mode=0o600, exist_ok=False)
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _answers(client: "Plaudit", filters: Row) -> Iterator[Row]:
    for answer in client.completions.iterate(limit=100, **filters):
        yield answer.model_dump(mode="json")


def _feedback(client: "Plaudit", filters: Row) -> Iterator[Row]:
    for vote in client.feedback.iterate(limit=100, **filters):
        yield vote.model_dump(mode="json", exclude={"status"})


def _unpaired(client: "Plaudit", filters: Row) -> Iterator[Row]:
    """Thumbs in TRL's unpaired shape. Neutral and retracted ones are none."""
    for vote, answer in _voted(client, filters):
        if vote.key == "thumb" and vote.value and not vote.retracted:
            completion = [_said(answer.content)]
            row = {"prompt": answer.messages, "completion": completion, "label": vote.value > 0}
            yield row | {"response_id": answer.id, "version": answer.version}


def _preference(client: "Plaudit", filters: Row) -> Iterator[Row]:
    """Corrections in TRL's preference shape: what should have been said against what was."""
    for vote, answer in _voted(client, filters):
        if vote.correction and not vote.retracted:
            row = {"prompt": answer.messages, "chosen": [_said(vote.correction)], "rejected": [_said(answer.content)]}
            yield row | {"rejected_id": answer.id, "version": answer.version}


def _said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _voted(client: "Plaudit", filters: Row) -> "Iterator[tuple[Feedback, StoredCompletion]]":
    """Feedback that can be learnt from, with its answers; erased ones are passed over."""
    from plaudit import GoneError, NotFoundError

    answer_of = lru_cache(maxsize=256)(client.completions.get)
    for vote in client.feedback.iterate(limit=100, **filters):
        if vote.trainable:
            with suppress(GoneError, NotFoundError):
                yield vote, answer_of(vote.response_id)


SOURCES: dict[What, "Callable[[Plaudit, Row], Iterator[Row]]"] = {
    What.answers: _answers,
    What.feedback: _feedback,
    What.trl_unpaired: _unpaired,
    What.trl_preference: _preference,
}


def write_jsonl(rows: Iterable[Row], file: TextIO) -> int:
    """An object a line, all of it ASCII: what a text holds cannot steer a terminal, and nothing is lost. How many."""
    count = 0
    for row in rows:
        file.write(f"{json.dumps(row)}\n")
        count += 1
    return count


def write_csv(rows: Iterable[Row], file: TextIO) -> int:
    """A head line and a line a row; lists and objects as JSON. How many rows."""
    writer, count = csv.writer(file, lineterminator="\n"), 0
    for count, row in enumerate(rows, start=1):
        if count == 1:
            writer.writerow(row)
        writer.writerow(map(cell, row.values()))
    return count


def cell(value: Any) -> str:
    """A value as a CSV cell. A text that a spreadsheet would compute gets a quote in front of it.

    Characters that steer the terminal or turn the reading direction are left out; numbers stay as they are.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value)
    text = value.translate(_BIDI).translate({code: None for code in _CONTROLS if code != 13})
    return f"'{text}" if text.lstrip(" \n").startswith(tuple(FORMULA)) else text


WRITERS: dict[Format, Callable[[Iterable[Row], TextIO], int]] = {Format.jsonl: write_jsonl, Format.csv: write_csv}
