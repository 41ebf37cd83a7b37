"""Ratings given in the real Open WebUI, in a real browser, reach the answers that they were given to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.integrations.conftest import ROOT, Site, environment_with, free_port, running, visit
from tests.support.stack import wait_for

FUNCTIONS = ROOT / "clients" / "open-webui"
PERSON = {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}


@contextmanager
def open_webui(folder: Path) -> Iterator[str]:
    python = environment_with("open-webui")
    port = free_port()
    environment = {
        "DATA_DIR": str(folder),
        "WEBUI_SECRET_KEY": "of this test",
        "USE_SLIM_DOCKER": "true",
        "OFFLINE_MODE": "true",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "false",
        "SCARF_NO_ANALYTICS": "true",
        "DO_NOT_TRACK": "true",
        "ENABLE_TAGS_GENERATION": "false",
    }
    command = [python.with_name("open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, port, folder=folder, environment=environment, seconds=120) as url:
        yield url


def sign_in(url: str, path: str) -> httpx.Client:
    """A client that is logged in as Ada, who administers."""
    made = httpx.post(f"{url}/api/v1/auths/{path}", json=PERSON, timeout=30)
    assert made.is_success, made.text
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {made.json()['token']}"}, timeout=30)


def install(client: httpx.Client, file: str, name: str, valves: dict[str, Any]) -> None:
    """Put a function in, switched on, as an administrator would."""
    content = (FUNCTIONS / f"{file}.py").read_text(encoding="utf-8")
    form = {"id": name, "name": name, "content": content, "meta": {"description": name}}
    for path, body in (
        ("create", form),
        (f"id/{name}/toggle", None),
        (f"id/{name}/valves/update", valves),
    ):
        done = client.post(f"/api/v1/functions/{path}", json=body)
        assert done.is_success, done.text


def ask(page: Page, text: str, count: int = 1) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(thumb(page, "Good")).to_have_count(count, timeout=20_000)
    expect(page.get_by_text("[fake engine]").last).to_be_visible()


def thumb(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=f"{name} Response")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "open-webui"
    folder.mkdir()
    return folder


def enter(page: Page, client: httpx.Client) -> None:
    """Open a new chat with Plaudit's model, logged in as the client is, past the news of this version."""
    read = {"ui": {"version": client.get("/api/version").json()["version"], "showChangelog": False}}
    assert client.post("/api/v1/users/user/settings/update", json=read).is_success
    page.goto("/auth")
    token = client.headers["authorization"].removeprefix("Bearer ")
    page.evaluate("token => localStorage.setItem('token', token)", token)
    page.goto("/?models=plaudit.policy")


def test_ratings(browser: Browser, site: Site, kept: Path) -> None:
    with open_webui(kept) as url, sign_in(url, "signup") as admin:
        ratings = {"url": site.url, "key": site.key("feedback", "viewer")}
        install(admin, "plaudit_models", "plaudit", {"url": site.url, "key": site.key("chat")})
        install(admin, "plaudit_ratings", "plaudit_ratings", ratings)
        assert "plaudit.policy" in [model["id"] for model in admin.get("/api/models").json()["data"]]
        with visit(browser, url) as page:
            enter(page, admin)
            ask(page, "What is first?")
            (first,) = site.answers(1)  # neither the title nor the follow-ups were stored
            thumb(page, "Good").click()
            vote = site.vote(response_id=first["id"], value=1.0)
            thumb(page, "Bad").click()
            site.vote(id=vote["id"], value=-1.0)
            (rating,) = exported(admin)
            named = {"response_id": first["id"], "value": "down", "end_user": rating["user_id"]}
            assert site.admin.post("/v1/feedback", json=named).json()["id"] == vote["id"], "Open WebUI's user rates"

            away = ratings | {"url": "http://127.0.0.1:9"}
            assert admin.post("/api/v1/functions/id/plaudit_ratings/valves/update", json=away).is_success
            ask(page, "What is second?", 2)
            second = site.answers(2)[0]["id"]
            thumb(page, "Good").last.click()
            wait_for("two ratings", lambda: len(exported(admin)) == 2, seconds=15)
        assert [v["response_id"] for v in site.votes()] == [first["id"]]
        assert admin.post("/api/v1/functions/id/plaudit_ratings/valves/update", json=ratings).is_success

    with open_webui(kept) as url, sign_in(url, "signin") as admin:
        site.vote(response_id=second, value=1.0)  # sent when Open WebUI started
        assert admin.delete(f"/api/v1/evaluations/feedback/{rating['id']}").is_success
        assert site.vote(response_id=first["id"], retracted=True)["id"] == vote["id"]
        assert site.vote(response_id=second)["value"] == 1.0


def exported(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/v1/evaluations/feedbacks/all/export").json()
    return found
