"""Every route needs a key, save the few that are listed here, and says which roles may use it."""

from pathlib import Path
from typing import Any, get_args

import pytest

from plaudit.wire.ops import Role
from plaudit_server.app import create_app
from plaudit_server.settings import Settings
from tests.support.server import serving

OPEN = {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect"}
"""Load balancers have no keys; documents tell nothing that the source does not."""

DOCUMENT = create_app(Settings.model_construct()).openapi()
OPERATIONS = [(path, method, op) for path, ops in DOCUMENT["paths"].items() for method, op in ops.items()]


@pytest.mark.parametrize(
    ("path", "method", "op"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_operation_names_its_roles(path: str, method: str, op: dict[str, Any]) -> None:
    if path in OPEN:
        assert "security" not in op
        return
    (requirement,) = op["security"]
    roles = requirement["key"]
    assert roles
    assert set(roles) <= set(get_args(Role))


def test_no_route_is_missing_from_the_document() -> None:
    """A route hidden from OpenAPI would escape the test above."""
    app = create_app(Settings.model_construct())
    paths = {route.path for route in app.routes}  # type: ignore[attr-defined]
    assert paths >= set(DOCUMENT["paths"])
    assert paths - set(DOCUMENT["paths"]) <= OPEN


async def test_without_a_key_nothing_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for path, method, _ in OPERATIONS:
            concrete = path.replace("{version}", "v1").replace("{name}", "stable")
            answer = await server.anonymous.request(method.upper(), concrete, content=b"{")
            if path in OPEN:
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, (method, path)
