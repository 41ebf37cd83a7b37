"""The OpenAPI document: committed, current, complete; and the server keeps to it under generated requests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plaudit_server.app import create_app
from plaudit_server.settings import Settings

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "clients" / "openapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings.model_construct()).openapi()


def test_the_committed_document_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plaudit_server", "openapi"], capture_output=True, text=True, timeout=60, check=True
    )
    assert COMMITTED.read_text(encoding="utf-8") == done.stdout, (
        "the API changed: run `python -m plaudit_server openapi > clients/openapi.json` and look at the difference"
    )


def test_it_does_not_depend_on_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_MAX_BODY_BYTES", "not a number")  # would be refused, were it read
    assert create_app(Settings.model_construct()).openapi() == json.loads(COMMITTED.read_text(encoding="utf-8"))


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, op) for path, ops in document["paths"].items() for method, op in ops.items()]


def test_every_operation_is_described_and_named_once(document: dict[str, Any]) -> None:
    names = [op["operationId"] for _, _, op in operations(document)]
    assert len(names) == len(set(names))
    assert not [(method, path) for method, path, op in operations(document) if not op.get("description")]


def test_every_error_has_openais_shape(document: dict[str, Any]) -> None:
    for method, path, op in operations(document):
        for status, answer in op["responses"].items():
            if int(status) < 400 or (path, status) == ("/readyz", "503"):
                continue
            schema = answer["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (method, path, status)


def test_the_routes_of_the_contract_exist(document: dict[str, Any]) -> None:
    promised = {
        "POST /v1/chat/completions",
        "GET /v1/chat/completions",
        "GET /v1/chat/completions/{response_id}",
        "DELETE /v1/chat/completions/{response_id}",
        "GET /v1/models",
        "POST /v1/feedback",
        "POST /v1/feedback/batch",
        "POST /v1/feedback/tokens",
        "POST /v1/feedback/t/{token}",
        "GET /v1/feedback",
        "DELETE /v1/feedback/{feedback_id}",
        "POST /v1/comparisons",
        "POST /v1/events",
        "GET /v1/versions",
        "POST /v1/versions",
        "GET /v1/versions/{version}",
        "GET /v1/versions/{version}/lineage",
        "POST /v1/versions/{version}/promote",
        "POST /v1/rollback",
        "GET /v1/aliases",
        "PUT /v1/aliases/{name}",
        "POST /v1/batches:lease",
        "POST /v1/batches/{batch_id}:heartbeat",
        "POST /v1/batches/{batch_id}:ack",
        "POST /v1/batches/{batch_id}:fail",
        "POST /v1/training/runs",
        "POST /v1/training/runs/{run_id}/metrics",
        "POST /v1/training/generate",
        "POST /v1/training/score",
        "POST /v1/keys",
        "GET /v1/keys",
        "DELETE /v1/keys/{key_id}",
        "GET /v1/audit",
        "GET /metrics",
        "GET /healthz",
        "GET /readyz",
    }
    assert promised <= {f"{method.upper()} {path}" for method, path, _ in operations(document)}
