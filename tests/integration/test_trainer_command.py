"""`python -m plaudit_trainer`: arguments, errors in one line, and the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_learner import fake_base
from tests.support.fake_server import KEY, FakeServer


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT")}
    return clean | {"PYTHONUNBUFFERED": "1"} | more


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "plaudit_trainer", *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    fake_base(folder / "models" / "smollm2-135m-instruct")
    (folder / "trainer.key").write_text(KEY + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def url() -> Iterator[str]:
    with FakeServer(records=2).serve() as address:
        yield address


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("plaudit: ")
    return lines[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "from plaudit_trainer.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'pydantic', 'httpx', 'rich'} & sys.modules.keys()\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--once", "--url", "--data", "--model", "--min-records"):
        assert option in done.stdout


def test_waiting_imports_no_torch(data: Path, url: str) -> None:
    code = (
        "import sys\nfrom plaudit_trainer.__main__ import main\n"
        f"code = main(['--once', '--data', {str(data)!r}, '--url', {url!r}])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "waiting for feedback: 2 of 32 records" in done.stdout


def test_without_a_key_it_says_where_one_comes_from(data: Path) -> None:
    (data / "trainer.key").unlink()
    assert "start the server first" in only_line(run("--data", str(data)))
    (data / "trainer.key").write_text("", encoding="utf-8")
    assert "is empty" in only_line(run("--data", str(data)))


def test_a_wrong_key_is_told_with_its_mend(data: Path, url: str) -> None:
    line = only_line(run("--data", str(data), "--url", url, "--once", PLAUDIT_TRAINER_KEY="plk_wrong"))
    assert "refuses the key" in line
    assert "role trainer" in line
    assert "plk_wrong" not in line


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_model_that_is_not_there(data: Path, model: str) -> None:
    assert "no such folder" in only_line(run("--data", str(data), "--model", model))


def test_a_folder_that_is_no_model(data: Path) -> None:
    assert "no config.json" in only_line(run("--data", str(data), "--model", str(data)))


def test_without_the_bundled_model_it_says_who_unpacks_it(tmp_path: Path) -> None:
    assert "start the server once" in only_line(run("--data", str(tmp_path)))


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://[::"])
def test_an_address_that_is_none(data: Path, url: str) -> None:
    assert "--url" in only_line(run("--data", str(data), "--url", url))


def test_a_value_out_of_range_names_its_setting(data: Path) -> None:
    assert "PLAUDIT_TRAINER_MIN_RECORDS" in only_line(run("--data", str(data), "--min-records", "0"))
    assert "PLAUDIT_TRAINER_LEASE_S" in only_line(run("--data", str(data), PLAUDIT_TRAINER_LEASE_S="nan"))


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="not Linux, or built without autogroups")
def test_it_steps_back_as_a_session_too() -> None:
    code = (
        "import pathlib\n"
        "from plaudit_trainer.__main__ import _be_modest\n"
        "from plaudit_trainer.config import TrainerConfig\n"
        "_be_modest(TrainerConfig(niceness=7))\n"
        "print(pathlib.Path('/proc/self/autogroup').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        start_new_session=True,
    )
    assert done.stdout.split()[-2:] == ["nice", "7"]


def test_a_misspelt_setting_is_refused_and_the_nearest_named(data: Path) -> None:
    line = only_line(run("--data", str(data), PLAUDIT_TRAINER_MIN_RECORD="8"))
    assert "PLAUDIT_TRAINER_MIN_RECORD:" in line and "PLAUDIT_TRAINER_MIN_RECORDS" in line


def test_a_data_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "PLAUDIT_DATA" in only_line(run("--data", str(tmp_path / "file")))


def test_a_second_trainer_in_the_same_folder_is_refused(data: Path, url: str) -> None:
    with started(data, url) as first:
        assert first.stdout is not None
        _until(first, "waiting for feedback")
        line = only_line(run("--data", str(data), "--url", url, "--once"))
        assert f"process {first.pid}" in line
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=30) == 0


def test_a_server_that_is_away_is_waited_for_with_one_line(data: Path) -> None:
    with started(data, "http://127.0.0.1:9") as child:
        _until(child, "waiting for the server at http://127.0.0.1:9")
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
        assert child.stdout is not None
        rest = child.stdout.read().decode()
    assert "waiting" not in rest
    assert "stopped" in rest


def test_the_trainer_ends_with_its_parent(data: Path, url: str) -> None:
    with started(data, url, PLAUDIT_LIFELINE="stdin") as child:
        _until(child, "waiting for feedback")
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=30) == 0


def test_it_steps_back_for_the_server(data: Path, url: str) -> None:
    with started(data, url, PLAUDIT_TRAINER_NICENESS="7") as child:
        _until(child, "waiting for feedback")
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 0


def started(data: Path, url: str, **variables: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "plaudit_trainer", "--data", str(data), "--url", url],
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _until(child: "subprocess.Popen[bytes]", words: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if words in line.decode():
            return
    raise AssertionError(f"it ended without saying {words!r}")
