"""`python -m plaudit_server serve` as a process: what cannot work is one line and exit code 2; the end is orderly."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


def environment(data: Path, **settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
    given = {"PLAUDIT_DATA": str(data), "PLAUDIT_ENGINE": "fake", "PLAUDIT_PORT": str(free_port())}
    return clean | given | settings


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


def serve(env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "plaudit_server", "serve"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


@contextmanager
def running(env: dict[str, str], **options: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "plaudit_server", "serve"]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        url = f"http://127.0.0.1:{env['PLAUDIT_PORT']}/readyz"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(url).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line that says why."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("plaudit: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(serve(environment(tmp_path, PLAUDIT_PORT=str(taken.getsockname()[1]))))
    assert "PLAUDIT_PORT" in line


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="ascii")
    assert "PLAUDIT_DATA" in refused(serve(environment(tmp_path / "file" / "data")))


def test_a_database_of_a_newer_release(tmp_path: Path) -> None:
    with running(environment(tmp_path)) as process:
        process.terminate()
        process.wait(20)
    with sqlite3.connect(tmp_path / "plaudit.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
    database.close()
    assert "newer release" in refused(serve(environment(tmp_path)))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    line = refused(serve(environment(tmp_path, PLAUDIT_ENGINE="vllm", PLAUDIT_MODEL=str(tmp_path / "nowhere"))))
    assert "PLAUDIT_MODEL" in line


@pytest.mark.parametrize(
    ("name", "value"), [("PLAUDIT_PORT", "many"), ("PLAUDIT_ENGINE", "steam"), ("PLAUDIT_CONSENT_DEFAULT", "perhaps")]
)
def test_a_setting_that_makes_no_sense(tmp_path: Path, name: str, value: str) -> None:
    assert name in refused(serve(environment(tmp_path, **{name: value})))


def test_a_misspelt_setting_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    line = refused(serve(environment(tmp_path, PLAUDIT_AUTO_PROMTE="true")))
    assert "PLAUDIT_AUTO_PROMTE" in line and "PLAUDIT_AUTO_PROMOTE" in line


def test_a_second_server_on_the_same_folder(tmp_path: Path) -> None:
    with running(environment(tmp_path)):
        assert "another Plaudit server" in refused(serve(environment(tmp_path)))


def test_migrate_brings_the_database_to_the_newest_schema_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plaudit_server", "migrate"]
    for _ in range(2):
        done = subprocess.run(
            command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "which this release needs" in done.stdout
    assert (tmp_path / "plaudit.db").exists()


def test_a_database_out_of_reach(tmp_path: Path) -> None:
    line = refused(serve(environment(tmp_path, PLAUDIT_DATABASE_URL="postgresql://127.0.0.1:1/plaudit")))
    assert "PLAUDIT_DATABASE_URL" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    env = environment(tmp_path)
    with running(env) as process:
        process.send_signal(number)
        assert process.wait(20) == 0
    with running(env) as process:  # at once again: the port, the folder and the database are free
        assert process.poll() is None


def test_after_a_kill_everything_acknowledged_is_there(tmp_path: Path) -> None:
    env = environment(tmp_path)
    url = f"http://127.0.0.1:{env['PLAUDIT_PORT']}"
    votes = []
    with running(env) as process:
        headers = {"authorization": f"Bearer {(tmp_path / 'admin.key').read_text(encoding='ascii').strip()}"}
        with httpx.Client(base_url=url, headers=headers) as client:
            for number in range(10):
                body = {"messages": [{"role": "user", "content": f"q{number}"}]}
                answer = client.post("/v1/chat/completions", json=body).json()
                vote = {"response_id": answer["id"], "value": True}
                assert client.post("/v1/feedback", json=vote).status_code == 201
                votes.append(answer["id"])
        process.kill()
        process.wait()
    with running(env), httpx.Client(base_url=url, headers=headers) as client:
        kept = client.get("/v1/feedback", params={"limit": 100}).json()["data"]
        assert sorted(vote["response_id"] for vote in kept) == sorted(votes)


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with running(environment(tmp_path, PLAUDIT_LIFELINE="stdin"), stdin=reading) as process:
        os.close(reading)
        assert process.poll() is None
        os.close(writing)
        assert process.wait(20) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_help_is_instant(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['plaudit_server', *sys.argv[1:]]\n"
        "from plaudit_server.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit: pass\n"
        "heavy = {'fastapi', 'sqlalchemy', 'pydantic', 'uvicorn', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
