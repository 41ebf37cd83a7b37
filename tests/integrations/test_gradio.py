"""Gradio's own thumbs, pressed in a real browser, reach the answers that they were given to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.integrations.conftest import ROOT, Site, environment_with, free_port, running, visit

EXAMPLES = ROOT / "clients" / "python" / "examples"
APP = "import gradio_chat as app; app.build().launch(server_port={port}, auth={auth})"


@pytest.fixture
def app(site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The example, with `auth` where a test parametrizes this fixture so."""
    python = environment_with("gradio")
    port = free_port()
    environment = {
        "PLAUDIT_URL": site.url,
        "PLAUDIT_API_KEY": site.key("chat", "feedback"),
        "PYTHONPATH": f"{ROOT / 'clients' / 'python'}:{EXAMPLES}",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }
    code = APP.format(port=port, auth=getattr(request, "param", None))
    with running([python, "-c", code], port, folder=tmp_path, environment=environment) as url:
        yield url


def ask(page: Page, text: str, count: int = 1) -> None:
    """Ask; the page then shows so many answers."""
    box = page.locator("textarea").last
    box.fill(text)
    box.press("Enter")
    answered(page, count)


def answered(page: Page, count: int) -> None:
    expect(page.get_by_test_id("bot")).to_have_count(count)
    expect(page.get_by_test_id("bot").last).to_contain_text("[fake engine]")
    expect(thumb(page, "Like")).to_have_count(count)  # they appear when the answer is complete


def thumb(page: Page, name: str) -> Locator:
    return page.get_by_label(name, exact=True)


def test_thumbs_reach_the_answer_that_they_were_given_to(browser: Browser, app: str, site: Site) -> None:
    with visit(browser, app) as page:
        page.goto("/")
        ask(page, "What is first?")
        ask(page, "What is second?", 2)
        second, first = (answer["id"] for answer in site.answers(2))
        thumb(page, "Like").nth(0).click()
        assert site.vote(response_id=first, value=1.0)["end_user"].startswith("eu_")
        thumb(page, "Dislike").last.click()
        site.vote(response_id=second, value=-1.0)

        page.get_by_label("Liked", exact=True).click()  # pressed again
        assert site.vote(response_id=first, retracted=True)["value"] is None

        page.get_by_role("button", name="Retry").click()
        again = site.answers(3)[0]["id"]
        answered(page, 2)
        thumb(page, "Like").last.click()
        site.vote(response_id=again, value=1.0)
        assert site.vote(response_id=second, value=-1.0)["revision"] == 1, "the one that was retried keeps its own"

        page.get_by_role("button", name="Undo").click()
        answered(page, 1)
        thumb(page, "Dislike").click()
        site.vote(response_id=first, value=-1.0)


def test_an_edited_answer_is_a_correction(browser: Browser, app: str, site: Site) -> None:
    with visit(browser, app) as page:
        page.goto("/")
        ask(page, "What is right?")
        page.get_by_label("Edit").last.click()
        page.locator(".edit-textarea").fill("This is.")
        page.get_by_label("Submit").last.click()
        assert site.vote(correction="This is.")["response_id"] == site.answers(1)[0]["id"]
        thumb(page, "Dislike").click()
        assert site.vote(value=-1.0)["correction"] == "This is.", "a thumb does not replace the correction"
        thumb(page, "Disliked").click()
        site.vote(value=None, retracted=False, correction="This is.")
        page.locator(".extra-feedback").hover()
        page.locator(".extra-feedback-option", has_text="Untrue").click()
        site.vote(tags=["Untrue"], correction="This is.")


@pytest.mark.parametrize("app", [[("ada", "pw"), ("bob", "pw")]], indirect=True)
def test_two_people_rate_their_own(browser: Browser, app: str, site: Site) -> None:
    with visit(browser, app) as ada, visit(browser, app) as bob:
        for page, name in ((ada, "ada"), (bob, "bob")):
            page.goto("/")
            page.get_by_label("username").fill(name)
            page.get_by_label("password").fill("pw")
            page.get_by_role("button", name="Login").click()
            ask(page, f"What does {name} ask?")
        of_bob, of_ada = (answer["id"] for answer in site.answers(2))
        thumb(ada, "Like").click()
        thumb(bob, "Dislike").click()
        by_ada, by_bob = site.vote(response_id=of_ada, value=1.0), site.vote(response_id=of_bob, value=-1.0)
        assert by_ada["end_user"] != by_bob["end_user"]
        named = site.admin.post("/v1/feedback", json={"response_id": of_ada, "value": "up", "end_user": "ada"})
        assert named.json()["id"] == by_ada["id"], "the login's name is the end user"
