"""`plaudit tune`: instruction tuning, which the trainer does in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import FrameType

import typer

from plaudit.cli._session import USAGE, complain, session_of

NEEDED = ("torch", "transformers", "trl", "peft", "sacrebleu", "plaudit_trainer")
"""What `pip install "plaudit[trainer]"` brings; the bare package has none of it to run with."""


def tune(ctx: typer.Context) -> None:
    """Fine-tune a model on demonstrations, measure it on held-out ones, register it. Options: `plaudit tune --help`."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        complain(f'tuning needs {", ".join(missing)}: pip install "plaudit[trainer]"')
        raise typer.Exit(USAGE)
    session = session_of(ctx)
    given = {"PLAUDIT_TRAINER_URL": session.url, "PLAUDIT_TRAINER_KEY": session.key}
    # The key travels in the environment: arguments are visible to every user of the machine.
    variables = os.environ | {name: value for name, value in given.items() if value is not None}
    raise typer.Exit(run([sys.executable, "-m", "plaudit_trainer", "tune", *ctx.args], variables))


def run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run a child to its end and return its exit status. Ctrl-C is the child's: it cleans up before it ends."""
    before = signal.signal(signal.SIGINT, _leave_to_child)  # a handler, unlike SIG_IGN, is not inherited
    try:
        with subprocess.Popen(command, env=dict(variables)) as child:
            return child.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_to_child(number: int, frame: FrameType | None) -> None:
    """Do nothing: the terminal sends Ctrl-C to the whole group, the child included."""
