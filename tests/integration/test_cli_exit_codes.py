"""Exit codes as a shell sees them: real processes, real signals, real pipes."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support import sdk_harness as h

# A shell without job control has what it starts in the background ignore Ctrl-C, and so all that it starts in turn.
HEEDING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
PLAUDIT = [sys.executable, "-c", f"{HEEDING}from plaudit.cli import app; app()"]


def start(*args: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*PLAUDIT, *args], text=True, **pipes)


class EndlessFeedback(BaseHTTPRequestHandler):
    """Lists feedback that never ends, a page at a time."""

    pages = itertools.count()

    def do_GET(self) -> None:
        page = h.page_json([h.feedback_json(id=f"fb_{next(self.pages)}") for _ in range(100)], f"p{next(self.pages)}")
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def endless() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), EndlessFeedback) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--version"], 0),
        (["versions", "shwo"], 2),
        (["import", "alpaca", "/nowhere/at/all.json"], 2),
        (["--url", "nowhere", "versions"], 2),
        (["--url", "http://127.0.0.1:9", "versions"], 3),
        (["--url", "http://127.0.0.1:9", "watch", "--once"], 3),
        (["--url", "http://127.0.0.1:9", "export", "answers"], 3),
        (["--url", "http://127.0.0.1:9", "chat", "hi"], 3),
    ],
)
def test_a_command_ends_with_its_code_and_at_most_a_few_lines(args: list[str], code: int) -> None:
    with start(*args) as child:
        out, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "Traceback" not in err
    assert bool(out) == (code == 0)


def interrupted(child: subprocess.Popen[str]) -> str:
    """What it says at its end. Pressed again, as people do: Python drops an interrupt that falls into a callback."""
    for _ in range(10):
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=6)[1]
    child.kill()
    raise AssertionError("ten interrupts did not end it")


def test_ctrl_c_ends_with_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        with start("--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "versions") as child:
            connection, _ = silent.accept()  # it waits for an answer now
            with connection:
                err = interrupted(child)
    assert child.returncode == 130
    assert "Traceback" not in err


def test_an_export_streams_and_ends_when_its_reader_goes_away() -> None:
    with endless() as url, start("--url", url, "export", "feedback") as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["id"].startswith("fb_")
        child.stdout.close()
        assert child.wait(timeout=60) == 1
        assert child.stderr is not None
        assert child.stderr.read() == ""
