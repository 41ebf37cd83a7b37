"""`plaudit runs`."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._complete import run_ids
from plaudit.cli._session import (
    REFUSED,
    JsonFlag,
    Session,
    figure,
    json_line,
    listing_group,
    print_facts,
    print_json,
    print_listing,
    printable,
    session_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit import Plaudit
    from plaudit.wire.training import Run

WATCH_EVERY_S = 2.0


def list_runs(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """The newest runs."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        found = client.training.runs(limit=limit).data
    columns = ("run", "version", "parent", "state", "stage", "progress", "updated", "reason")
    print_listing(session, found, columns, row, empty="No runs yet. One begins when enough answers have been rated.")


runs = listing_group("Training runs.", list_runs)


@runs.command("show")
def show_run(
    ctx: typer.Context,
    run_id: Annotated[str, typer.Argument(autocompletion=run_ids)],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """One run with its newest metrics. With --watch, the exit code tells whether it published."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        run = client.training.run(run_id)
        if not watch:
            _show(session, run)
            return
        seen = _until_end(session, client, run)
        drawn = sys.stdout.isatty() and not session.as_json
        run = draw_bar(seen) if drawn else _print_changes(seen, as_json=session.as_json)
    raise typer.Exit(0 if run.state == "published" else REFUSED)


def _until_end(session: Session, client: "Plaudit", run: "Run") -> "Iterator[Run]":
    """The run, again and again until it has ended; its last state included."""
    yield run
    while run.state == "running":
        session.sleep(WATCH_EVERY_S)
        run = client.training.run(run.id)
        yield run


def _print_changes(seen: "Iterable[Run]", *, as_json: bool) -> "Run":
    """A line a change; the run as it ended."""
    shown = None
    for run in seen:
        line = json_line(run) if as_json else _line(run)
        if line != shown:
            typer.echo(line)
            shown = line
    return run


def draw_bar(seen: "Iterable[Run]", console: "Console | None" = None) -> "Run":
    """A bar that grows in place, and a line at the end; the run as it ended."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    words = TextColumn("{task.description}", markup=False)
    with Progress(
        words, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=1.0)
        for run in seen:
            told = " ".join(part for part in (run.version, run.state, run.stage) if part)
            bar.update(task, description=printable(told), completed=run.progress or 0.0)
        bar.console.print(Text(_line(run)))
    return run


def _show(session: Session, run: "Run") -> None:
    if session.as_json:
        print_json(run)
        return
    print_facts(
        [
            ("run", run.id),
            ("state", run.state),
            ("reason", run.reason or ""),
            ("version", run.version),
            ("parent", run.parent),
            ("batch", run.batch_id),
            ("stage", run.stage or ""),
            ("progress", _percent(run.progress)),
            ("created", run.created_at.isoformat()),
            ("updated", run.updated_at.isoformat()),
        ]
    )
    if run.metrics:
        typer.echo()
        print_facts((name, figure(value, 4)) for name, value in sorted(run.metrics.items()))


def row(run: "Run") -> tuple[str, ...]:
    """A run as a line of a table."""
    updated = f"{run.updated_at:%Y-%m-%d %H:%M}"
    progress = _percent(run.progress)
    return (run.id, run.version, run.parent, run.state, run.stage or "", progress, updated, run.reason or "")


def _line(run: "Run") -> str:
    metrics = " ".join(f"{name}={figure(value)}" for name, value in sorted(run.metrics.items())[:6])
    parts = (
        f"{run.updated_at:%H:%M:%S}",
        run.version,
        run.state,
        run.stage,
        _percent(run.progress),
        metrics,
        run.reason,
    )
    return printable("  ".join(part for part in parts if part))


def _percent(progress: float | None) -> str:
    return "" if progress is None else f"{progress:.0%}"
