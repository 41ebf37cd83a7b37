"""What `make run` does with its children, on small real processes."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from plaudit_server.engine import bundled
from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings
from plaudit_server.supervisor import EXIT_SETTING, Child, Supervisor, _in_words


def child(tmp_path: Path, program: str) -> tuple[Child, int]:
    read, write = os.pipe()
    made = Child("child", [sys.executable, "-c", program], dict(os.environ), tmp_path / "logs" / "child.log", read)
    return made, write


def until_dead(made: Child) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        code = made.watch()
        if code is not None:
            return code
        time.sleep(0.02)
    raise AssertionError("the child did not die")


def test_a_dead_child_is_started_again_after_a_pause_that_doubles(tmp_path: Path):
    made, _write = child(tmp_path, "raise SystemExit(7)")
    made.start()
    assert until_dead(made) == 7
    assert made.process is None and made.pause_s == 2
    assert made.watch() is None and made.process is None, "not before its pause is over"
    made.restart_at = 0
    made.watch()
    assert made.process is not None
    assert until_dead(made) == 7
    assert made.pause_s == 4


def test_a_child_that_was_healthy_for_long_is_forgiven(tmp_path: Path):
    made, _write = child(tmp_path, "raise SystemExit(7)")
    made.pause_s = 30
    made.start()
    made.started_at -= 3600
    until_dead(made)
    assert made.pause_s == 2


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("plaudit_server.supervisor._STOP_SECONDS", 0.5)
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    )
    made, _write = child(tmp_path, program)
    made.start()
    while "on" not in made.last_words():
        time.sleep(0.02)
    process = made.process
    made.stop()
    assert process is not None and process.returncode == -signal.SIGKILL


def test_a_port_in_use_is_one_line_that_names_the_mend(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "plaudit_server", "up"],
            env={**os.environ, "PLAUDIT_PORT": str(port), "PLAUDIT_DATA": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == EXIT_SETTING
    assert "PLAUDIT_PORT" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [("/nowhere/at/all", "no such folder"), ("./nowhere", "no such folder"), ("not a model!", "hub")],
)
def test_a_model_that_is_not_there_is_named(tmp_path: Path, model: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SettingError, match=words) as caught:
        bundled.ensure_model(Settings(model=model, data=tmp_path))
    assert "PLAUDIT_MODEL" in caught.value.message


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(SettingError, match=r"config\.json"):
        bundled.ensure_model(Settings(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SettingError, match="safetensors"):
        bundled.ensure_model(Settings(model=str(tmp_path)))


def test_the_unpacked_model_is_found_without_unpacking_again(tmp_path: Path):
    folder = tmp_path / "models" / bundled.BUNDLED_NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert bundled.ensure_model(Settings(data=tmp_path, model=None)) == folder.resolve()


def test_an_unwritable_data_folder_is_named(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SettingError, match="PLAUDIT_DATA"):
        bundled.ensure_model(Settings(data=file, model=None))


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ({"name": "base", "state": "ready"}, ""),
        ({"name": "v1", "state": "rejected", "reason": "AUROC 0.51"}, "v1 is rejected: AUROC 0.51"),
        (
            {
                "name": "v2",
                "state": "ready",
                "aliases": ["stable"],
                "proof": {"replicas": [{"slope": 1.01, "low": 0.95, "high": 1.07}]},
            },
            "v2 is proven live and serves as stable: slope 1.01 (0.95 to 1.07)",
        ),
    ],
)
def test_news_in_words(version: dict, words: str):
    assert _in_words(version) == words


def test_news_are_told_once(tmp_path: Path):
    console = Console(record=True, width=200, file=io.StringIO())
    supervisor = Supervisor(Settings(data=tmp_path), console)
    for _ in range(3):
        supervisor._once("v1", "v1 is rejected: why")
    assert console.export_text().count("v1 is rejected") == 1
