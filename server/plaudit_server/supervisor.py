"""`make run`: the server and the trainer as children, started, watched, restarted and stopped together.

The engine is the server's own child. Every child holds the reading end of a pipe (its lifeline) whose writing end
only this process has: when this process goes, however it goes, the kernel closes the pipe and the children stop.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console

from plaudit_server.engine.bundled import ensure_model
from plaudit_server.engine.transformers_engine import NOTE, serves_by_transformers
from plaudit_server.errors import SettingError
from plaudit_server.settings import Settings

LOCAL_DEFAULTS: Mapping[str, str] = {
    "PLAUDIT_CONSENT_DEFAULT": "granted",
    "PLAUDIT_AUTO_PROMOTE": "true",
    "PLAUDIT_TRAINER_MIN_RECORDS": "16",
    "PLAUDIT_TRAINER_MAX_VOTES_PER_USER": "0",
    "PLAUDIT_TRAINER_MAX_YOUNG_SHARE": "1",
}
"""What a run for one person at one desk needs and production must decide for itself; said at every start."""

EXIT_SETTING = 2
"""A child that exits with this cannot work as it is set: restarting it would not help."""

_HEALTHY_AFTER_S = 60.0
_LONGEST_PAUSE_S = 30.0
_STOP_SECONDS = 20.0


@dataclass(slots=True)
class Child:
    """One supervised process. Restarted with doubling pauses, forgiven after a minute of health."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    lifeline: int
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    pause_s: float = field(default=1.0)

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches this process alone and children stop in order."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=self.lifeline,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    def watch(self) -> int | None:
        """Restart it where its pause is over; return the exit code once when it has just died."""
        if self.process is None:
            if time.monotonic() >= self.restart_at:
                self.start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.process = None
        if time.monotonic() - self.started_at > _HEALTHY_AFTER_S:
            self.pause_s = 1.0
        self.restart_at = time.monotonic() + self.pause_s
        self.pause_s = min(self.pause_s * 2, _LONGEST_PAUSE_S)
        return code

    def stop(self) -> None:
        """SIGTERM, then, after a while, SIGKILL to the child's whole group."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def last_words(self, lines: int = 3) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Stopped(Exception):
    """SIGINT or SIGTERM arrived."""


class Supervisor:
    """Starts the two children, tells how far they are, and keeps them running until it is told to stop."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.began = time.monotonic()
        self._lifeline_read, self._lifeline_write = os.pipe()
        self.children: list[Child] = []
        # One client for all looks: making one loads every root certificate, which costs more than the look itself.
        self._http = httpx.Client(base_url=self.address, timeout=5, trust_env=False)
        self._seen: set[tuple[str, str]] = set()

    @property
    def address(self) -> str:
        """Where people reach the server."""
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host  # noqa: S104
        return f"http://{host}:{self.settings.port}"

    def run(self) -> int:
        """Everything, until Ctrl-C. Returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _raise_stopped)
        try:
            self._begin()
            while True:
                self._watch_children()
                self._tell_news()
                time.sleep(2)
        except Stopped:
            self.console.print("\nstopping …")
            return 0
        except SettingError as error:
            self.console.print(f"plaudit: {error.message}", style="red", markup=False, soft_wrap=True)
            return EXIT_SETTING
        finally:
            self._stop_children()

    def _begin(self) -> None:
        environment = {**LOCAL_DEFAULTS, **os.environ}
        assumed = [f"{k}={v}" for k, v in LOCAL_DEFAULTS.items() if k not in os.environ]
        if assumed:
            self.console.print(
                "assumed, for one person at a desk (set them to change them; production has no such defaults):",
                soft_wrap=True,
            )
            self.console.print("  " + " ".join(assumed), style="dim", markup=False, highlight=False, soft_wrap=True)
        self._check_port()
        base = ensure_model(self.settings)
        self._say(f"base model: {base.name}")
        if serves_by_transformers(self.settings, base):
            self._say(NOTE)
        environment |= {
            "PLAUDIT_MODEL": str(base),
            "PLAUDIT_DATA": str(self.settings.data.resolve()),
            "PLAUDIT_TRAINER_URL": self.address,
            "PLAUDIT_LIFELINE": "stdin",
        }
        self._add("server", ["-m", "plaudit_server", "serve"], environment)
        self._await("server listening", "/healthz")
        self._await("engine healthy: the model answers", "/readyz")
        self._add("trainer", ["-m", "plaudit_trainer"], environment)
        self._say("trainer waiting for feedback")
        self._greet()

    def _check_port(self) -> None:
        """Refuse early: else a stranger's server on our port would look like ours being healthy."""
        family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.settings.host, self.settings.port))
            except OSError as error:
                where = f"{self.settings.host}:{self.settings.port}"
                raise SettingError(
                    f"cannot listen on {where} ({error.strerror}): set PLAUDIT_PORT or PLAUDIT_HOST"
                ) from error

    def _add(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        child = Child(
            name=name,
            command=[sys.executable, *arguments],
            environment=environment,
            log=self.settings.data / "logs" / f"{name}.log",
            lifeline=self._lifeline_read,
        )
        self.children.append(child)
        child.start()

    def _await(self, step: str, path: str) -> None:
        deadline = time.monotonic() + self.settings.engine_start_timeout_s
        with self.console.status(f"{step} …"):
            while not self._answers(path):
                self._watch_children(at_start=True)
                if time.monotonic() > deadline:
                    log = self.settings.data / "logs"
                    raise SettingError(f"{step}: not within {self.settings.engine_start_timeout_s:.0f} s; see {log}")
                time.sleep(0.2)
        self._say(step)

    def _answers(self, path: str) -> bool:
        try:
            return self._http.get(path, timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _watch_children(self, *, at_start: bool = False) -> None:
        for child in self.children:
            code = child.watch()
            if code is None:
                continue
            if code == EXIT_SETTING or (at_start and code == 1):
                raise SettingError(child.last_words(1).removeprefix("plaudit: ") or f"{child.name} exited with {code}")
            self._say(f"{child.name} ended with {code}; starting it again in {child.pause_s / 2:.0f} s ({child.log})")

    def _tell_news(self) -> None:
        """One line for each thing that happened to a version or a run since the last look."""
        for version in self._list("/v1/versions"):
            self._once(str(version["name"]), _in_words(version))
        for run in self._list("/v1/training/runs"):
            if run.get("state") == "failed":
                self._once(str(run["id"]), f"run on {run['batch_id']} failed: {run.get('reason')}")

    def _once(self, subject: str, words: str) -> None:
        if words and (subject, words) not in self._seen:
            self._seen.add((subject, words))
            self._say(words)

    def _list(self, path: str) -> list[dict[str, object]]:
        try:
            answer = self._http.get(path, headers={"Authorization": f"Bearer {self._key()}"}, params={"limit": 5})
            data = answer.json().get("data", []) if answer.is_success else []
        except (httpx.HTTPError, ValueError):
            return []  # the server is restarting: there will be another look
        return [entry for entry in reversed(data) if isinstance(entry, dict)]

    def _key(self) -> str:
        return (self.settings.data / "admin.key").read_text(encoding="utf-8").strip()

    def _greet(self) -> None:
        key_file = self.settings.data / "admin.key"
        messages = '[{"role": "user", "content": "What is the capital of France?"}]'
        body = f'{{"model": "policy", "messages": {messages}, "temperature": 0}}'
        curl = (
            f"curl -s {self.address}/v1/chat/completions -H 'Content-Type: application/json' "
            f'-H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" -d {shlex.quote(body)}'
        )
        out: Callable[[str], None] = lambda text: self.console.print(  # noqa: E731
            text, markup=False, highlight=False, soft_wrap=True
        )
        out(f"\n  address  {self.address}        API reference  {self.address}/docs")
        out(f"  key      {self._key()}  (also in {key_file})")
        out(f"\n{curl}\n")
        out("rate answers with `.venv/bin/plaudit chat`; new versions are told here. Ctrl-C stops everything.\n")

    def _say(self, text: str) -> None:
        self.console.print(
            f"  {time.monotonic() - self.began:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True
        )

    def _stop_children(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(self.children):
            child.stop()
        self._http.close()
        os.close(self._lifeline_write)
        os.close(self._lifeline_read)


def _raise_stopped(_number: int, _frame: object) -> None:
    raise Stopped


def _in_words(version: Mapping[str, object]) -> str:
    """What there is to tell of a version, as one line."""
    name, state, reason = version["name"], version["state"], version.get("reason")
    if name == "base":
        return ""
    if state == "ready":
        proof = version.get("proof")
        replicas = proof.get("replicas", []) if isinstance(proof, dict) else []
        slopes = ", ".join(
            f"slope {r['slope']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in replicas if r.get("slope")
        )
        aliases = version.get("aliases")
        serving = " and serves as stable" if isinstance(aliases, list) and "stable" in aliases else ""
        return f"{name} is proven live{serving}: {slopes}"
    return f"{name} is {state}" + (f": {reason}" if reason else "")


def up(settings: Settings) -> int:
    """Run server, engine and trainer until interrupted. Returns the exit code."""
    return Supervisor(settings, Console()).run()
