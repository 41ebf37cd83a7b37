"""`plaudit tune` hands over to the trainer, and says what is missing where there is none."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest
from typer.testing import CliRunner

from plaudit.cli import app, tune


class Started:
    """Remembers what would have been run."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.command: Sequence[str] = ()
        self.variables: Mapping[str, str] = {}

    def __call__(self, command: Sequence[str], variables: Mapping[str, str]) -> int:
        self.command, self.variables = command, variables
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    remembered = Started()
    monkeypatch.setattr(tune, "run", remembered)
    return remembered


def test_everything_behind_the_word_goes_to_the_trainer(started: Started) -> None:
    done = CliRunner().invoke(app, ["tune", "a.jsonl", "--base", "b", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert started.command == [sys.executable, "-m", "plaudit_trainer", "tune", "a.jsonl", "--base", "b", "--dry-run"]


def test_help_is_the_trainers(started: Started) -> None:
    CliRunner().invoke(app, ["tune", "--help"])
    assert started.command[-2:] == ["tune", "--help"]


def test_address_and_key_travel_in_the_environment(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLAUDIT_TRAINER_KEY", raising=False)
    CliRunner().invoke(app, ["--url", "http://there", "--key", "plk_secret", "tune", "a"])
    assert started.variables["PLAUDIT_TRAINER_URL"] == "http://there"
    assert started.variables["PLAUDIT_TRAINER_KEY"] == "plk_secret"
    assert not any("plk_secret" in word for word in started.command)
    CliRunner().invoke(app, ["tune", "a"])
    assert "PLAUDIT_TRAINER_KEY" not in started.variables
    assert started.variables["PATH"] == os.environ["PATH"]


def test_the_exit_status_is_the_trainers(started: Started) -> None:
    started.code = 130
    assert CliRunner().invoke(app, ["tune", "a"]).exit_code == 130


def test_without_the_trainer_it_says_what_to_install(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "find_spec", lambda name: None if name in ("trl", "sacrebleu") else object())
    done = CliRunner().invoke(app, ["tune", "a"])
    assert done.exit_code == 2
    assert done.stderr == 'plaudit: tuning needs trl, sacrebleu: pip install "plaudit[trainer]"\n'
    assert started.command == ()


def test_ctrl_c_waits_for_the_child_to_clean_up() -> None:
    child = (
        "import signal, sys, time\n"
        "def tidy(*_):\n    time.sleep(0.5)\n    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, tidy)\n"
        "import os; os.kill(os.getppid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(30)"
    )
    before = signal.getsignal(signal.SIGINT)
    assert tune.run([sys.executable, "-c", child], os.environ) == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_the_command_imports_no_trainer() -> None:
    code = (
        "import sys\nimport plaudit.cli\n"
        "sys.exit([m for m in ('plaudit_trainer', 'torch', 'trl') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
