"""The real Gradio, Chainlit and Open WebUI, each a process in an environment of its own, driven by a real Chromium.

Plaudit's server runs in a thread of this process, with the fake engine.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page

from plaudit_server.app import create_app
from plaudit_server.engine.fake import FakeEngine
from plaudit_server.settings import Settings
from tests.support.chromium import launched
from tests.support.stack import free_port, wait_for

ROOT = Path(__file__).parents[2]
SHOTS = Path(__file__).parent / "screenshots"
QUIET = ("PLAUDIT_", "PYTEST_", "PYTHON")
"""Prefixes of variables that the other programs shall not see."""


@dataclass
class Site:
    """A running Plaudit."""

    url: str
    admin: httpx.Client
    engine: FakeEngine

    def key(self, *roles: str) -> str:
        made = self.admin.post("/v1/keys", json={"name": "-".join(roles), "roles": list(roles)})
        assert made.status_code == 201, made.text
        secret: str = made.json()["secret"]
        return secret

    def votes(self) -> list[dict[str, Any]]:
        """All feedback, the newest first."""
        found: list[dict[str, Any]] = self.admin.get("/v1/feedback").json()["data"]
        return found

    def answers(self, count: int) -> list[dict[str, Any]]:
        """All stored answers, the newest first, once there are so many: what a page shows is stored a moment later."""

        def look() -> list[dict[str, Any]] | None:
            found: list[dict[str, Any]] = self.admin.get("/v1/chat/completions").json()["data"]
            return found if len(found) == count else None

        return wait_for(f"{count} answers", look, seconds=15, pause=0.05)

    def vote(self, seconds: float = 15, **expected: Any) -> dict[str, Any]:
        """The one vote that has all this, awaited."""

        def look() -> dict[str, Any] | None:
            return next((v for v in self.votes() if all(v[name] == wanted for name, wanted in expected.items())), None)

        return wait_for(f"a vote with {expected}; there are {self.votes()}", look, seconds=seconds, pause=0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    settings = Settings(data=tmp_path / "data", engine="fake", consent_default="granted")
    engine = FakeEngine()
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings, engine), log_config=None, timeout_graceful_shutdown=2, lifespan="on")
    )
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for("Plaudit", lambda: server.started and engine.is_ready(), seconds=30, pause=0.02)
        secret = (settings.data / "admin.key").read_text(encoding="ascii").strip()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}) as admin:
            yield Site(url, admin, engine)
        server.should_exit = True
        thread.join(20)


def environment_with(name: str) -> Path:
    """The interpreter of an environment that has the package, made when first asked for.

    Where it cannot be had the test is skipped, with what the installer said; in CI that is a failure.
    """
    install = [str(Path(__file__).parent / "install.sh"), name, sys.executable]
    done = subprocess.run(install, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode != 0:
        pytest.skip(f"{name} could not be installed: {done.stderr.strip()[-400:]}")
    return ROOT / ".venv" / "with" / name / "bin" / "python"


@contextmanager
def running(
    command: list[str | Path], port: int, *, folder: Path, environment: Mapping[str, str], seconds: float = 90
) -> Iterator[str]:
    """A server of another project as a child process; its address once it answers."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(QUIET)} | dict(environment)
    log = folder / f"{port}.log"
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        child = subprocess.Popen(command, cwd=folder, env=given, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def answers() -> bool:
        assert child.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            return httpx.get(url, timeout=5, follow_redirects=True).is_success
        except httpx.HTTPError:
            return False

    try:
        wait_for(" ".join(map(str, command)), answers, seconds=seconds, pause=0.2)
        yield url
    except BaseException:
        print(log.read_text(errors="replace")[-8000:])
        raise
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


__all__ = ["Site", "environment_with", "free_port", "running"]


@pytest.fixture(scope="module")  # while it lives, this thread has a running loop: no coroutine could be tested
def browser() -> Iterator[Browser]:
    # Fonts and counters elsewhere are not asked for.
    with launched("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as browser:
        yield browser


@contextmanager
def visit(browser: Browser, url: str) -> Iterator[Page]:
    """A page of a fresh browser profile. Where a test fails it leaves a screenshot."""
    context = browser.new_context(base_url=url, locale="en-GB", viewport={"width": 1180, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    try:
        yield page
    except BaseException:
        SHOTS.mkdir(exist_ok=True)
        name = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0]
        page.screenshot(path=SHOTS / f"{name}.png")
        raise
    finally:
        context.close()
