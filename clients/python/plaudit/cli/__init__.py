"""`plaudit`: talk to the server, rate it, and decide what serves.

Exit codes: 0 done · 1 refused or failed · 2 the command was wrong · 3 the server cannot be reached.
The client and its libraries are imported by the commands that need them, so that `--help` is quick.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from plaudit import __version__
from plaudit.cli import chat, doctor, exporting, importing, keys, replicas, rollouts, runs, tune, versions, watch
from plaudit.cli._session import Session, complain, exit_code, one_line


class _OneLineErrors(TyperGroup):
    """Ends a command that failed with one line and an exit code instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        from plaudit.errors import PlauditError

        try:
            return super().invoke(ctx)
        except PlauditError as error:
            complain(one_line(error))
            raise typer.Exit(exit_code(error)) from None


app = typer.Typer(
    cls=_OneLineErrors,
    help="Chat with a model that learns from its users' ratings; rate it; decide which version serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(chat.chat)
app.command()(chat.rate)
app.add_typer(versions.versions, name="versions")
app.command()(versions.promote)
app.command()(versions.rollback)
app.add_typer(rollouts.rollouts, name="rollouts")
app.add_typer(runs.runs, name="runs")
app.add_typer(replicas.replicas, name="replicas")
app.add_typer(keys.keys, name="keys")
app.command()(watch.watch)
app.command("import")(importing.import_rows)
app.command()(exporting.export)
app.command()(doctor.doctor)
app.command(  # its options are the trainer's, which parses them and answers --help
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)(tune.tune)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option(help="The server; else PLAUDIT_URL, else the local run.")] = None,
    key: Annotated[
        str | None, typer.Option(help="The key; else PLAUDIT_API_KEY, else data/admin.key for a local server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show this client's version.")
    ] = False,
) -> None:
    """Chat with a model that learns from its users' ratings; rate it; decide which version serves."""
    given = ctx.obj if isinstance(ctx.obj, Session) else Session()
    ctx.obj = Session(url, key, as_json, given.transport, given.clock)
