"""Pages of other origins: any may vote under a token, the configured ones may chat, none may operate."""

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from plaudit_server.settings import Settings
from tests.support.server import HELLO, Harness, serving

pytestmark = pytest.mark.sqlite  # nothing here is the database's affair

APP = "https://app.example.com"
EVIL = "https://evil.example"
CHAT = "/v1/chat/completions"
TOKEN = "/v1/feedback/t/ft1_x"


async def preflight(server: Harness, path: str, origin: str, method: str = "POST") -> httpx.Response:
    wanted = {"authorization, content-type"} if not path.startswith("/v1/feedback/t/") else {"content-type"}
    return await server.anonymous.options(
        path,
        headers={
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": wanted.pop(),
        },
    )


def allowed(answer: httpx.Response) -> str | None:
    """The origin that may read an answer; cookies never go along."""
    assert "access-control-allow-credentials" not in answer.headers
    return answer.headers.get("access-control-allow-origin")


async def test_by_default_only_the_token_route_is_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        asked = await preflight(server, TOKEN, EVIL)
        assert (asked.status_code, allowed(asked)) == (200, "*")
        for path in (CHAT, "/v1/feedback", "/v1/versions", "/v1/keys", "/metrics"):
            refused = await preflight(server, path, APP)
            assert (refused.status_code, allowed(refused)) == (405, None), path
        answer = await server.admin.post(CHAT, json={"messages": HELLO}, headers={"origin": APP})
        assert (answer.status_code, allowed(answer)) == (200, None)


async def test_a_vote_from_any_page(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        chat = await server.admin.post(CHAT, json={"messages": HELLO})
        url = f"/v1/feedback/t/{chat.headers['x-feedback-token']}"
        vote = await server.anonymous.post(url, json={"value": True}, headers={"origin": EVIL})
        assert (vote.status_code, allowed(vote)) == (201, "*")
        assert "x-feedback-token" in vote.headers["access-control-expose-headers"]
        # A page can read why it was refused, too.
        again = await server.anonymous.post(url, json={"value": True}, headers={"origin": EVIL})
        assert (again.status_code, allowed(again)) == (409, "*")
        large = await server.anonymous.post(url, content=b"x" * 2_000_000, headers={"origin": EVIL})
        assert (large.status_code, allowed(large)) == (413, "*")


async def test_configured_origins_may_chat_and_rate_and_nothing_more(tmp_path: Path) -> None:
    async with serving(tmp_path, cors_origins=f"{APP}, http://localhost:5173") as server:
        for path in (CHAT, "/v1/feedback", "/v1/feedback/batch", "/v1/comparisons", "/v1/events", "/v1/models"):
            asked = await preflight(server, path, APP)
            assert (asked.status_code, allowed(asked)) == (200, APP), path
            assert "authorization" in asked.headers["access-control-allow-headers"].lower()
            refused = await preflight(server, path, EVIL)
            assert (refused.status_code, allowed(refused)) == (400, None), path
        for path in ("/v1/versions", "/v1/keys", "/v1/audit", "/v1/rollback", "/v1/feedbackx", "/metrics"):
            closed = await preflight(server, path, APP)
            assert closed.status_code in (404, 405), path
            assert allowed(closed) is None, path
        stream = await server.admin.post(CHAT, json={"messages": HELLO, "stream": True}, headers={"origin": APP})
        assert (stream.status_code, allowed(stream)) == (200, APP)
        assert "origin" in stream.headers["vary"].lower()
        assert "x-feedback-token" in stream.headers["access-control-expose-headers"]
        other = await server.admin.post(CHAT, json={"messages": HELLO}, headers={"origin": EVIL})
        assert allowed(other) is None


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example.com", "https://app.example.com/", "https://*.x.com", "ftp://x"]
)
def test_what_is_no_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        Settings(cors_origins=origin)  # type: ignore[arg-type]  # as the environment has it
