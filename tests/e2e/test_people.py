"""What people do with the pages, on real parts: vLLM, the trainer, Chromium, one service for the whole file, in order.

Screenshots go to tests/pages/screenshots, as those of the pages' own tests do.
"""

import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from plaudit import Plaudit
from plaudit_server.routes.pages import BUILT
from tests.pages.looks import shoot
from tests.support.chromium import launched
from tests.support.quick_trainer import QUICK, questions
from tests.support.stack import ROOT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SHORT = {"PLAUDIT_ENGINE_MAX_MODEL_LEN": "512"}
"""Tokens of a conversation: the page bounds no answer, and a small model may talk on and on."""
WIDGET = ROOT / "clients" / "widget"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Iterator[Stack]:
    if not (BUILT / "console.html").is_file():
        pytest.skip("the pages are not built: make pages")
    stack = Stack(tmp_path_factory.mktemp("people"), model=base_model, environment=QUICK | SHORT)
    stack.start("server")
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Plaudit]:
    with Plaudit(base_url=stack.url, api_key=stack.key(), timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """One tab for the day; what its console complains of fails the test that it happened in."""
    context = browser.new_context(base_url=stack.url, locale="en-GB", viewport={"width": 1280, "height": 860})
    context.set_default_timeout(60_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def enter(page: Page, stack: Stack, path: str) -> None:
    page.goto(path)
    page.get_by_label("Key", exact=True).fill(stack.key())
    page.get_by_role("button", name="Continue").click()


def ask(page: Page, text: str) -> Locator:
    """Ask in a chat of its own: after an answer that ran to the bound, a conversation has no room for a second."""
    page.get_by_role("button", name="New chat").click()
    answer = page.get_by_role("article")
    expect(answer).to_have_count(0)
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(answer.get_by_role("button", name="Good answer")).to_be_visible(timeout=180_000)  # once it has ended
    return answer


def test_ask_and_watch_the_tokens_arrive(page: Page, stack: Stack) -> None:
    enter(page, stack, "/")
    page.get_by_label("Message", exact=True).fill("Tell me a story of the sea, in many words.")
    page.keyboard.press("Enter")
    answer = page.get_by_role("article").last
    expect(answer).to_have_attribute("aria-busy", "true")
    lengths = set[int]()
    while len(lengths) < 8:  # it grows before one's eyes
        assert answer.get_attribute("aria-busy") == "true", "it came at once"
        lengths.add(len(answer.inner_text()))
        page.wait_for_timeout(50)
    shoot(page, "people-chat")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")


def test_rate_correct_and_compare(page: Page, client: Plaudit) -> None:
    answer = ask(page, "What is the capital of France? One word.")
    answer.get_by_role("button", name="Good answer").click()
    expect(page.get_by_role("status")).to_have_text("Saved. Thank you.")
    answer = ask(page, "What is the capital of Italy? One word.")
    answer.get_by_role("button", name="Correct").click()
    answer.get_by_label("How should the answer have been?").fill("Rome.")
    answer.get_by_role("button", name="Send correction").click()
    expect(answer.get_by_label("Your correction")).to_contain_text("Rome.")
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Two answers").check()
    page.get_by_label("Message", exact=True).fill("Which animal is the fastest? One word.")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="B is better").click(timeout=180_000)
    expect(page.get_by_text("You preferred this answer.")).to_be_visible()
    kept = client.feedback.list().data
    assert {row.value for row in kept} == {1, None} and any(row.correction == "Rome." for row in kept)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def foreign_origin() -> Iterator[str]:
    """Somebody's site that embeds the widget."""
    subprocess.run([ROOT / "clients" / "build.sh"], check=True, timeout=540)
    handler = functools.partial(_Quiet, directory=str(WIDGET))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/demo/index.html"
        server.shutdown()


def test_a_widget_on_a_foreign_origin(page: Page, stack: Stack, client: Plaudit, foreign_origin: str) -> None:
    reply = client.chat.create("Name a colour.", max_tokens=8, user="a-visitor")
    token = reply.feedback_token
    query = urlencode({"base-url": stack.url, "response-id": reply.response_id, "token": token})
    with page.context.new_page() as tab:
        tab.goto(f"{foreign_origin}?{query}")
        plain = tab.locator("#plain")
        plain.get_by_role("button", name="Good answer").click()
        expect(plain.get_by_role("status")).to_have_text("Thank you. Your vote is counted.")
        shoot(tab, "people-widget")
    (vote,) = client.feedback.list(response_id=reply.response_id).data
    assert (vote.value, vote.version) == (1, "base")


def test_the_console_shows_the_vote_and_follows_the_trainer(page: Page, stack: Stack, client: Plaudit) -> None:
    page.goto("/console")
    if page.get_by_label("Key", exact=True).is_visible():
        enter(page, stack, "/console")
    expect(page.get_by_text("live", exact=True)).to_be_visible()
    go(page, "Answers and votes")
    page.get_by_role("button", name="Votes and words").click()
    expect(page.get_by_role("region", name="Votes and words").last).to_contain_text("Rome.")
    shoot(page, "people-votes")

    for number, question in enumerate(questions()):
        reply = client.chat.create(question, max_tokens=32, temperature=1.0, user=f"user-{number % 8}")
        client.feedback.create(reply.response_id, "\n" not in reply.text.strip(), end_user=f"user-{number % 8}")
    go(page, "Is it learning?")
    stack.start("trainer")
    card = page.get_by_label("The trainer now")
    expect(card).to_contain_text("v1 out of base", timeout=120_000)
    stages = set[str]()
    while client.versions.list().data[0].name != "v1":
        stages.add(card.inner_text())
        page.wait_for_timeout(250)
        assert stack.processes["trainer"].poll() is None, stack.log("trainer")
    assert len(stages) > 3, "it advanced before one's eyes"
    shoot(page, "people-trainer", whole=True)


def test_promote_with_a_reason_and_roll_back(page: Page, client: Plaudit) -> None:
    go(page, "Versions")
    version = page.get_by_role("list", name="Lineage").get_by_role("button", name="v1")
    expect(version).to_contain_text("ready", timeout=120_000)
    version.click()
    expect(page.get_by_role("region", name="Proof on each replica")).to_contain_text("passed")
    shoot(page, "people-versions", whole=True)
    page.get_by_role("button", name="Promote v1").click()
    confirm(page, "Promote v1", "read a dozen of its answers")
    expect(page.get_by_role("status")).to_contain_text("stable → v1", timeout=60_000)
    assert client.chat.create("Hello!", max_tokens=4).version == "v1"
    page.get_by_role("button", name="Roll back").click()
    confirm(page, "Roll back", "it was only to be seen")
    expect(page.get_by_role("status")).to_contain_text("stable → base", timeout=60_000)
    assert client.chat.create("Hello!", max_tokens=4).version == "base"
    go(page, "Audit log")
    expect(page.get_by_role("region", name="Audit log")).to_contain_text("read a dozen of its answers")
    shoot(page, "people-audit")


def go(page: Page, view: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=view).click()
    expect(page.get_by_role("heading", name=view, level=2).first).to_be_visible()


def confirm(page: Page, verb: str, reason: str) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill(reason)
    dialog.get_by_role("button", name=verb).click()
    expect(dialog).to_have_count(0, timeout=60_000)
