"""Chainlit's own thumbs, pressed in a real browser, reach the answers that they were given to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.integrations.conftest import ROOT, Site, environment_with, free_port, running, visit

ALONE = ROOT / "clients" / "python" / "examples" / "chainlit_chat.py"
LAYERED = """
import sqlite3
import chainlit as cl
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from plaudit import AsyncPlaudit
from plaudit.integrations.chainlit import PlauditFeedback, answer

client = AsyncPlaudit()

class Layer(PlauditFeedback, SQLAlchemyDataLayer):
    pass

@cl.data_layer
def data_layer():
    layer = Layer(conninfo="sqlite+aiosqlite:///kept.db")
    layer.plaudit = client
    return layer

@cl.on_message
async def on_message(message: cl.Message):
    if "plainly" in message.content:
        await cl.Message(content="[fake engine] not at all: no answer of Plaudit's").send()
    else:
        await answer(client, message.content)
"""
TABLES = """
CREATE TABLE users ("id" TEXT PRIMARY KEY, "identifier" TEXT UNIQUE, "metadata" TEXT, "createdAt" TEXT);
CREATE TABLE threads ("id" TEXT PRIMARY KEY, "createdAt" TEXT, "name" TEXT, "userId" TEXT, "userIdentifier" TEXT,
  "tags" TEXT, "metadata" TEXT);
CREATE TABLE steps ("id" TEXT PRIMARY KEY, "name" TEXT, "type" TEXT, "threadId" TEXT, "parentId" TEXT,
  "streaming" BOOLEAN, "waitForAnswer" BOOLEAN, "isError" BOOLEAN, "metadata" TEXT, "tags" TEXT, "input" TEXT,
  "output" TEXT, "createdAt" TEXT, "command" TEXT, "start" TEXT, "end" TEXT, "generation" TEXT, "showInput" TEXT,
  "language" TEXT, "indent" INT, "defaultOpen" BOOLEAN, "autoCollapse" BOOLEAN, "modes" TEXT, "icon" TEXT);
CREATE TABLE feedbacks ("id" TEXT PRIMARY KEY, "forId" TEXT, "threadId" TEXT, "value" INT, "comment" TEXT);
"""


@contextmanager
def chainlit(site: Site, folder: Path, code: str) -> Iterator[str]:
    python = environment_with("chainlit")
    (folder / "app.py").write_text(code, encoding="utf-8")
    port = free_port()
    environment = {
        "PLAUDIT_URL": site.url,
        "PLAUDIT_API_KEY": site.key("chat", "feedback"),
        "PYTHONPATH": str(ROOT / "clients" / "python"),
    }
    command = [python, "-m", "chainlit", "run", "app.py", "--headless", "--port", str(port)]
    with running(command, port, folder=folder, environment=environment) as url:
        yield url


def ask(page: Page, text: str, count: int = 1) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.locator("#chat-submit").click()
    expect(page.locator(".ai-message")).to_have_count(count)
    expect(page.locator(".ai-message").last).to_contain_text("[fake engine]")
    expect(page.locator("#chat-submit")).to_be_visible()  # in the place of the button that stops


def rate(page: Page, thumb: str, comment: str | None = None) -> None:
    page.locator(f".{thumb}-feedback-off").last.click()
    if comment:
        page.get_by_role("dialog").get_by_role("textbox").fill(comment)
    page.locator("#submit-feedback").click()
    expect(page.locator(f".{thumb}-feedback-on")).not_to_have_count(0)


def test_alone(browser: Browser, site: Site, tmp_path: Path) -> None:
    with chainlit(site, tmp_path, ALONE.read_text(encoding="utf-8")) as url, visit(browser, url) as page:
        page.goto("/")
        ask(page, "What is first?")
        ask(page, "What is second?", 2)
        second, first = (answer["id"] for answer in site.answers(2))
        rate(page, "negative", "too short")
        assert site.vote(response_id=second, value=-1.0)["comment"] == "too short"
        page.locator(".positive-feedback-off").first.click()
        page.locator("#submit-feedback").click()
        site.vote(response_id=first, value=1.0)
        page.locator(".negative-feedback-on").click()
        site.vote(response_id=second, retracted=True)
        assert site.vote(response_id=first)["value"] == 1.0


@pytest.mark.parametrize("run_is_tied", [True, False])
def test_over_a_layer_that_keeps_steps(browser: Browser, site: Site, tmp_path: Path, *, run_is_tied: bool) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "kept.db") as database:
        database.executescript(TABLES)
    with chainlit(site, tmp_path, LAYERED) as url, visit(browser, url) as page:
        page.goto("/")
        ask(page, "What is kept?")
        rate(page, "positive", "kept")
        vote = site.vote(response_id=site.answers(1)[0]["id"], value=1.0, comment="kept")
        ask(page, "Speak plainly.", 2)
        rate(page, "negative")
    (kept, plain) = database.execute('SELECT "id", "value" FROM feedbacks ORDER BY "value" DESC').fetchall()
    assert (kept[1], plain[1]) == (1, 0), "the layer below keeps both"
    assert [v["id"] for v in site.votes()] == [vote["id"]], "what Plaudit did not say is not forwarded"

    if not run_is_tied:  # as where Chainlit's task that stores its beginning ends after the one that stores its end
        assert database.execute("""UPDATE steps SET "metadata" = '{}' WHERE "type" = 'run'""").rowcount
        database.commit()

    with chainlit(site, tmp_path, LAYERED) as url:  # another process, which never saw the message
        said = httpx.request("DELETE", f"{url}/feedback", json={"feedbackId": kept[0]})
        assert said.status_code == 200, said.text
    assert site.vote(id=vote["id"], retracted=True)["end_user"] == vote["end_user"]
    assert database.execute("SELECT count(*) FROM feedbacks").fetchone() == (1,)
    database.close()


def test_a_vote_that_plaudit_did_not_take_is_not_shown_as_given(
    browser: Browser, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with chainlit(site, tmp_path, ALONE.read_text(encoding="utf-8")) as url, visit(browser, url) as page:
        page.goto("/")
        ask(page, "What is erased?")
        answer = site.answers(1)[0]["id"]
        assert site.admin.delete(f"/v1/chat/completions/{answer}").is_success
        page.locator(".positive-feedback-off").click()
        page.locator("#submit-feedback").click()
        expect(page.locator("[data-sonner-toast]").last).to_be_visible()
        expect(page.locator(".positive-feedback-on")).to_have_count(0)
