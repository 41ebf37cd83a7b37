"""Generated requests, good and bad, against a real server: whatever is sent, it never answers 500."""

import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies
    import schemathesis

from plaudit_server.app import create_app
from plaudit_server.settings import Settings

SCHEMA = schemathesis.openapi.from_dict(create_app(Settings.model_construct()).openapi()).exclude(path="/v1/live")
"""All but the stream that does not end."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data = tmp_path_factory.mktemp("generated")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = str(bound.getsockname()[1])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
    given = {"PLAUDIT_DATA": str(data), "PLAUDIT_ENGINE": "fake", "PLAUDIT_PORT": port}
    log = (data / "server.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "plaudit_server", "serve"], env=clean | given, cwd=ROOT, stderr=log
    )
    with log, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                client.get("/readyz").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        client.headers["Authorization"] = f"Bearer {(data / 'admin.key').read_text(encoding='ascii').strip()}"
        yield client
        process.terminate()
        process.wait(30)


@SCHEMA.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_it_never_breaks(case: Any, server: httpx.Client) -> None:
    answer = case.call(
        base_url=str(server.base_url).rstrip("/"), headers={"Authorization": server.headers["Authorization"]}
    )
    assert answer.status_code != 500, answer.text
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    if answer.status_code >= 400 and answer.status_code != 503:
        assert set(answer.json()) == {"error"}, answer.text
