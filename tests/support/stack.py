"""The real thing under test: server (with vLLM as its child) and trainer as processes on a data folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from tests.support import databases

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, look: Callable[[], T | None], *, seconds: float, pause: float = 0.25) -> T:
    """The first truthy answer of `look`; fails, saying what was waited for, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)


STORE = "TESTS_STORE"
"""Environment variable: `postgres` gives each stack a database on a real PostgreSQL instead of an SQLite file."""


def _store() -> dict[str, str]:
    if os.environ.get(STORE, "sqlite") == "sqlite":
        return {}
    server = databases.server_url()
    assert server is not None, databases.HOW
    with ThreadPoolExecutor(1) as thread:  # the caller may be within a running loop
        return {"PLAUDIT_DATABASE_URL": thread.submit(databases.new_database, server).result()}


class Stack:
    """Processes on one data folder. `start` and `kill` any of `server`, `trainer`; the engine is found by descent."""

    def __init__(self, data: Path, *, model: Path, environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        given = dict(environment or {})
        if "PLAUDIT_DATABASE_URL" not in given:
            given |= _store()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PLAUDIT_")},
            "PLAUDIT_DATA": str(data),
            "PLAUDIT_PORT": str(self.port),
            "PLAUDIT_MODEL": str(model),
            "PLAUDIT_CONSENT_DEFAULT": "granted",
            "PLAUDIT_TRAINER_URL": self.url,
            "PLAUDIT_TRAINER_POLL_S": "1",
            "PLAUDIT_TRAINER_MAX_YOUNG_SHARE": "1",  # every rater of a test is new
            **given,
        }

    def start(self, name: str) -> None:
        command = {"server": ["-m", "plaudit_server", "serve"], "trainer": ["-m", "plaudit_trainer"]}[name]
        log = self.data / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
            )

    def kill(self, name: str) -> None:
        """`kill -9`, as the kernel's memory killer would."""
        if name == "engine":
            for process in self.engine_processes():
                process.kill()
            return
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def engine_processes(self) -> list[psutil.Process]:
        """Every process below the server: vLLM's API server, its engine core, its workers."""
        server = self.processes.get("server")
        if server is None or server.poll() is not None:
            return []
        return [p for p in psutil.Process(server.pid).children(recursive=True) if p.is_running()]

    def stop(self, seconds: float = 30) -> dict[str, int]:
        """SIGTERM to all, trainer first. Returns exit codes."""
        codes = {}
        for name in ("trainer", "server"):
            process = self.processes.pop(name, None)
            if process is None:
                continue
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                codes[name] = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes

    def is_up(self, path: str = "/readyz") -> bool:
        try:
            return httpx.get(self.url + path, timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def wait_ready(self, seconds: float = 240) -> None:
        def look() -> bool:
            server = self.processes.get("server")
            assert server is not None and server.poll() is None, f"the server ended:\n{self.log('server')}"
            return self.is_up()

        wait_for("the server to be ready", look, seconds=seconds)

    def log(self, name: str, characters: int = 4000) -> str:
        path = self.data / "logs" / f"{name}.log"
        return path.read_text(errors="replace")[-characters:] if path.exists() else ""

    def key(self) -> str:
        return (self.data / "admin.key").read_text().strip()
