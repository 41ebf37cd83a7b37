"""Killed at each named point of the loop and started again: nothing lost, nothing twice, no half version."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit_trainer.publish import verify
from tests.integration.test_trainer_loop import STEPS
from tests.support.fake_server import FakeServer
from tests.support.trainer_child import KILLED

ROOT = Path(__file__).parents[2]
POINTS = [*STEPS[:3], "learning", *STEPS[3:]]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(records=8)


@pytest.fixture
def url(server: FakeServer) -> Iterator[str]:
    with server.serve() as address:
        yield address


def command(data: Path, url: str, die_at: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "support" / "trainer_child.py"), str(data), url, die_at]


def start(data: Path, url: str, die_at: str = "nowhere") -> int:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(data, url, die_at), env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, KILLED), done.stderr
    return done.returncode


def assert_only_whole_versions(data: Path) -> list[str]:
    versions = data / "versions"
    names = sorted(path.name for path in versions.glob("v*")) if versions.is_dir() else []
    for name in names:
        verify(versions / name)
    return names


@pytest.mark.parametrize("point", POINTS)
def test_killed_there_and_started_again(point: str, server: FakeServer, url: str, tmp_path: Path) -> None:
    assert start(tmp_path, url, point) == KILLED
    assert_only_whole_versions(tmp_path)
    assert start(tmp_path, url) == 0
    assert sorted(server.consumed) == sorted(server.records), "each record consumed exactly once"
    assert assert_only_whole_versions(tmp_path) == ["v1"] == list(server.versions)
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["v1"], "no leftovers"
    assert list((tmp_path / "trainer" / "pending").iterdir()) == []


@pytest.mark.parametrize("point", ["learning", "renamed", "registered"])
def test_killed_there_and_started_after_the_lease_has_expired(
    point: str, server: FakeServer, url: str, tmp_path: Path
) -> None:
    assert start(tmp_path, url, point) == KILLED
    server.expire_leases()
    assert start(tmp_path, url) == 0
    assert sorted(server.consumed) == sorted(server.records)
    assert assert_only_whole_versions(tmp_path) == list(server.versions)
    assert len(server.versions) == 1


def test_killed_again_and_again(server: FakeServer, url: str, tmp_path: Path) -> None:
    for point in ("learning", "manifest_written", "renamed", "registered"):
        assert start(tmp_path, url, point) == KILLED
        assert_only_whole_versions(tmp_path)
        server.add_records(2)
    for _ in range(3):
        assert start(tmp_path, url) == 0
    assert sorted(server.consumed) == sorted(server.records)
    assert assert_only_whole_versions(tmp_path) == sorted(server.versions)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_steps_and_gives_the_batch_back(
    number: signal.Signals, server: FakeServer, url: str, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command(tmp_path, url, "never ends"), env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"working\n"
        child.send_signal(number)
        assert child.wait(timeout=30) == 0
    assert server.states() == ["released"]
    assert server.batches["batch-0"]["reason"] == "trainer stopped"
    assert list((tmp_path / "versions").iterdir()) == []
