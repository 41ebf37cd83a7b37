"""Which error stands for which answer, and where address and key come from."""

from pathlib import Path
from typing import Any

import httpx
import pytest

import plaudit
from plaudit import APIConnectionError, APIResponseError, ConfigurationError, Plaudit, errors
from plaudit._config import find_endpoint
from tests.support import sdk_harness as h


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> h.Caller:
    return h.Caller(request.param)


def get(client: Any) -> Any:
    return client.versions.get("v1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (410, errors.GoneError),
        (412, errors.PreconditionFailedError),
        (413, errors.BadRequestError),
        (418, errors.APIStatusError),
        (422, errors.UnprocessableEntityError),
        (429, errors.RateLimitError),
        (500, errors.InternalServerError),
        (502, errors.ServiceUnavailableError),
        (503, errors.ServiceUnavailableError),
        (507, errors.InternalServerError),
    ],
)
async def test_each_status_has_its_error(caller: h.Caller, status: int, kind: type[errors.APIStatusError]) -> None:
    body = {"error": {"message": "why not", "type": "t", "param": "value", "code": "c"}}
    reply = httpx.Response(status, json=body, headers={"x-request-id": "req-9"})
    with pytest.raises(kind) as caught:
        await caller(h.Script(reply), get, max_retries=0)
    assert type(caught.value) is kind
    error = caught.value
    assert (error.message, error.status, error.code, error.param) == ("why not", status, "c", "value")
    assert (error.request_id, str(error)) == ("req-9", "why not")


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[1]", b'{"error": "x"}', b"\xff"])
async def test_a_refusal_that_is_not_ours_still_has_its_status(caller: h.Caller, body: bytes) -> None:
    with pytest.raises(errors.ServiceUnavailableError, match="HTTP 502 without an error body"):
        await caller(h.Script(httpx.Response(502, content=body)), get, max_retries=0)


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"{}", b'{"name": 5}', b"\xff"])
async def test_an_answer_that_is_not_ours_is_named(caller: h.Caller, body: bytes) -> None:
    with pytest.raises(APIResponseError, match="not Plaudit's"):
        await caller(h.Script(httpx.Response(200, content=body)), get)


async def test_a_redirect_is_an_error_and_the_key_stays_here(caller: h.Caller) -> None:
    script = h.Script(httpx.Response(307, headers={"location": "http://elsewhere.example/"}))
    with pytest.raises(errors.APIStatusError):
        await caller(script, get)
    assert len(script.requests) == 1


async def test_a_missing_key_is_explained(caller: h.Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_DATA", str(tmp_path))
    monkeypatch.delenv("PLAUDIT_API_KEY", raising=False)
    with pytest.raises(errors.AuthenticationError, match="set PLAUDIT_API_KEY"):
        await caller(h.Script(h.refusal(401)), get, api_key=None)


async def test_the_cause_of_a_lost_connection_is_kept(caller: h.Caller) -> None:
    with pytest.raises(APIConnectionError) as caught:
        await caller(h.Script(httpx.ReadError("reset")), get, max_retries=0)
    assert isinstance(caught.value.__cause__, httpx.ReadError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    kinds = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__name__.endswith("Error")
    }
    assert {name for name in kinds if name not in drawn} == set()
    assert kinds <= set(plaudit.__all__)


def test_every_public_name_can_be_had() -> None:
    for name in plaudit.__all__:
        assert getattr(plaudit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = plaudit.nonsense


def test_arguments_come_before_the_environment_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("plk_file\n")
    env = {"PLAUDIT_DATA": str(tmp_path), "PLAUDIT_PORT": "8123"}
    local = find_endpoint(env=env)
    assert (local.base_url, local.api_key, local.local) == ("http://127.0.0.1:8123", "plk_file", True)
    env |= {"PLAUDIT_URL": "http://localhost:1/v1/", "PLAUDIT_API_KEY": "plk_env"}
    assert find_endpoint(env=env).base_url == "http://localhost:1"
    assert find_endpoint(env=env).api_key == "plk_env"
    assert find_endpoint("https://a.example/plaudit", "plk_arg", env).api_key == "plk_arg"


def test_the_local_key_file_is_never_sent_to_another_machine(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("plk_file")
    env = {"PLAUDIT_DATA": str(tmp_path)}
    for url in ("http://a.example", "http://10.0.0.1:8000", "http://127.0.0.1.a.example", "http://127.0.0.1@a.example"):
        assert find_endpoint(url, env=env).api_key is None
    for url in ("http://127.0.0.1:8000", "http://[::1]:8000", "http://localhost"):
        assert find_endpoint(url, env=env).api_key == "plk_file"


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")])
def test_a_listening_address_becomes_one_to_connect_to(host: str, url: str) -> None:
    assert find_endpoint(env={"PLAUDIT_HOST": host}).base_url == url


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://a", "http://", "http://a:x", "http://a:99999", "http://a/?q", "http://a b", "http://[::"],
)
def test_a_bad_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a server's address"):
        Plaudit(url, "plk_x")


@pytest.mark.parametrize("key", ["plk x", "plk\nx", "schlüssel"])
def test_a_key_that_is_no_header_value_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Plaudit(h.URL, key)
    assert key not in str(caught.value)
