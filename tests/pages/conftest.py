"""A real Chromium on the real server, which runs in a thread of this process with the fake engine."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from plaudit_server.app import create_app
from plaudit_server.engine import fake
from plaudit_server.engine.fake import FakeEngine
from plaudit_server.routes.pages import BUILT
from plaudit_server.services import Services
from plaudit_server.settings import Settings
from tests.support.stack import wait_for

HOSTILE = """# Hostile
<script>window.harmed = 1</script><img src="http://127.0.0.1:{port}/beacon?1" onerror="window.harmed = 2">
![beacon](http://127.0.0.1:{port}/beacon?2)
[press me](javascript:window.harmed=3) and [me](JaVaScRiPt:window.harmed=4) or [data](data:text/html,<script>1</script>)
<iframe srcdoc="<script>parent.harmed=5</script>"></iframe><svg onload="window.harmed=6"></svg>
photo\u202egpj.exe
[a link](https://example.com/path)
"""
WELL_SHAPED = """## Of lists and code

A paragraph with **bold**, *slanted* and `inline` words, [a link](https://example.com).

1. one
2. two

```python
print("a long line that must scroll in its box instead of widening the page, however narrow the screen may be")
```

| version | votes |
|---|---|
| v1 | 12 |
"""


@dataclass
class Site:
    """A running server."""

    url: str
    admin: httpx.Client
    engine: FakeEngine
    beacons: list[bytes]
    settings: Settings
    services: Services

    def key(self, *roles: str) -> str:
        made = self.admin.post("/v1/keys", json={"name": "-".join(roles), "roles": list(roles)})
        assert made.status_code == 201, made.text
        secret: str = made.json()["secret"]
        return secret

    def feedback(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.admin.get("/v1/feedback").json()["data"]
        return found

    def completions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.admin.get("/v1/chat/completions").json()["data"]
        return found


def _spoken(port: int) -> Any:
    """The fake engine's words; said what the question asks for where it names one of the texts above."""
    usual = fake._tokens

    def tokens(body: dict[str, Any], version: str, index: int) -> Iterator[str]:
        asked = json.dumps(body["messages"][-1])
        text = HOSTILE.format(port=port) if "hostile" in asked else WELL_SHAPED if "shape" in asked else None
        return usual(body, version, index) if text is None else iter(text.splitlines(keepends=True))

    return tokens


@pytest.fixture(scope="session")
def beacon() -> Iterator[tuple[int, list[bytes]]]:
    """A listener that hears whoever follows an image's address."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(2)
                    heard.append(connection.recv(4096))

        threading.Thread(target=listen, daemon=True).start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beacon: tuple[int, list[bytes]]) -> Iterator[Site]:
    if not (BUILT / "index.html").is_file():
        pytest.skip("the pages are not built: make pages")
    port, heard = beacon
    monkeypatch.setattr(fake, "_tokens", _spoken(port))
    settings = Settings(data=tmp_path / "data", engine="fake", consent_default="granted", live_tick_s=0.2)
    engine = FakeEngine()
    app = create_app(settings, engine)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for(
            "the server",
            lambda: (server.started and engine.is_ready()) or not thread.is_alive(),
            seconds=30,
            pause=0.02,
        )
        secret = (settings.data / "admin.key").read_text(encoding="ascii").strip()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}) as admin:
            yield Site(url, admin, engine, heard, settings, app.state.services)
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")  # while it lives, this thread has a running loop: no coroutine could be tested
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    version = subprocess.run([path, "--version"], capture_output=True, timeout=60, check=True).stdout
    assert version
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        launched = playwright.chromium.launch(executable_path=path, args=arguments, timeout=60_000)
        yield launched
        launched.close()


@pytest.fixture
def problems() -> list[str]:
    """What the page complained of. A test that provokes complaints clears it."""
    return []


@pytest.fixture
def page(browser: Browser, site: Site, problems: list[str]) -> Iterator[Page]:
    """A page of a fresh browser profile. Errors in its console fail the test, save answers that are no success."""
    context = browser.new_context(base_url=site.url, locale="en-GB", viewport={"width": 1180, "height": 800})
    context.set_default_timeout(15_000)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    yield opened
    context.close()
    assert [problem for problem in problems if "Failed to load resource" not in problem] == []
