"""`plaudit runs`."""

from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli._complete import run_ids
from plaudit.cli._session import (
    REFUSED,
    JsonFlag,
    Session,
    figure,
    print_facts,
    print_json,
    print_listing,
    printable,
    session_of,
)

if TYPE_CHECKING:
    from plaudit.wire.training import Run

runs = typer.Typer(help="Training runs.", invoke_without_command=True)

WATCH_EVERY_S = 2.0


@runs.callback()
def _default(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Training runs."""
    if ctx.invoked_subcommand is None:
        list_runs(ctx, as_json=as_json)


@runs.command("list")
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
        shown = None
        while True:
            line = run.model_dump_json() if session.as_json else _line(run)
            if line != shown:
                typer.echo(line)
                shown = line
            if run.state != "running":
                raise typer.Exit(0 if run.state == "published" else REFUSED)
            session.sleep(WATCH_EVERY_S)
            run = client.training.run(run_id)


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
