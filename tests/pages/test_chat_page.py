"""The chat page as a person uses it."""

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from plaudit_server.errors import EngineRefused
from tests.pages.conftest import Site
from tests.pages.looks import shoot, violations
from tests.support.stack import wait_for


def enter(page: Page, key: str, *, remember: bool = False) -> None:
    page.goto("/")
    page.get_by_label("Key", exact=True).fill(key)
    if remember:
        page.get_by_label("Remember on this device").check()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def ask(page: Page, text: str) -> Locator:
    """Ask, and wait for the whole answer."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Answer complete.")
    return page.get_by_role("article").last


@pytest.fixture
def chat(page: Page, site: Site) -> Page:
    enter(page, site.key("chat", "feedback"))
    return page


def test_a_wrong_key_is_told(page: Page, site: Site) -> None:
    page.goto("/")
    page.get_by_label("Key", exact=True).fill("plk_wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_have_text("The server does not know this key.")
    shoot(page, "key")
    page.get_by_label("Key", exact=True).fill(site.key("viewer"))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("may not chat (its roles: viewer)")
    assert page.evaluate("[sessionStorage.length, localStorage.getItem('plaudit.key')]") == [0, None]


@pytest.mark.parametrize("remember", [False, True])
def test_the_key_is_remembered_only_where_wanted(page: Page, site: Site, remember: bool) -> None:
    key = site.key("chat")
    enter(page, key, remember=remember)
    assert page.evaluate("localStorage.getItem('plaudit.key')") == (key if remember else None)
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_be_visible()
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert page.evaluate("[sessionStorage.length, localStorage.getItem('plaudit.key')]") == [0, None]


def test_tokens_arrive_one_by_one_and_stop_stops(chat: Page, site: Site) -> None:
    site.engine.token_delay_s = 0.4
    chat.get_by_label("Message", exact=True).fill("Tell me slowly.")
    chat.keyboard.press("Enter")
    answer = chat.get_by_role("article")
    expect(answer).to_contain_text("[fake engine]")
    expect(answer).to_have_attribute("aria-busy", "true")
    early = answer.inner_text()
    expect(answer).not_to_have_text(early, use_inner_text=True)
    assert answer.inner_text().startswith(early.split("\n")[0])
    chat.get_by_role("button", name="Stop").click()
    expect(chat.get_by_role("status")).to_have_text("Stopped.")
    expect(answer).to_have_attribute("aria-busy", "false")
    wait_for("the engine to stop", lambda: len(site.engine.aborted) == 1, seconds=10)
    wait_for("its row", lambda: [one["status"] for one in site.completions()] == ["aborted"], seconds=10)


def test_escape_stops(chat: Page, site: Site) -> None:
    site.engine.token_delay_s = 0.4
    chat.get_by_label("Message", exact=True).fill("Tell me slowly.")
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("article")).to_contain_text("[fake engine]")
    chat.keyboard.press("Escape")
    expect(chat.get_by_role("status")).to_have_text("Stopped.")


def test_a_vote_its_revision_and_a_correction(chat: Page, site: Site) -> None:
    answer = ask(chat, "Rate this.")
    expect(answer).to_contain_text("version base")
    answer.get_by_role("button", name="Good answer").click()
    expect(chat.get_by_role("status")).to_have_text("Saved. Thank you.")
    answer.get_by_role("button", name="Bad answer").click()
    answer.get_by_label("off topic").check()
    answer.get_by_label("Comment (optional)").fill("It speaks of <b>itself</b>.")
    shoot(chat, "vote")
    answer.get_by_role("button", name="Save").click()
    expect(answer.get_by_label("off topic")).to_have_count(0)
    (kept,) = site.feedback()
    assert (kept["value"], kept["tags"], kept["comment"]) == (-1, ["off_topic"], "It speaks of <b>itself</b>.")
    assert kept["response_id"] == site.completions()[0]["id"]
    assert kept["end_user"] == site.completions()[0]["end_user"]
    answer.get_by_role("button", name="Correct").click()
    answer.get_by_label("How should the answer have been?").fill("It should have been **short**.")
    answer.get_by_role("button", name="Send correction").click()
    expect(answer.get_by_label("Your correction").locator("strong")).to_have_text("short")
    (kept,) = site.feedback()
    assert (kept["value"], kept["correction"]) == (-1, "It should have been **short**.")
    assert (kept["tags"], kept["revision"]) == (["off_topic"], 4)
    shoot(chat, "correction")
    ask(chat, "And now?")
    told = [m["content"] for m in site.completions()[0]["messages"]]
    assert told == ["Rate this.", "It should have been **short**.", "And now?"]


def test_a_vote_is_taken_back(chat: Page, site: Site) -> None:
    answer = ask(chat, "Rate this.")
    answer.get_by_role("button", name="Good answer").click()
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    answer.get_by_role("button", name="Good answer").click()
    expect(chat.get_by_role("status")).to_have_text("Vote taken back.")
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")
    assert [one["value"] for one in site.feedback() if not one["retracted"]] == []


def test_a_correction_without_a_thumb(chat: Page, site: Site) -> None:
    answer = ask(chat, "Correct this.")
    answer.get_by_role("button", name="Correct").click()
    answer.get_by_label("How should the answer have been?").fill("Better.")
    answer.get_by_role("button", name="Send correction").click()
    expect(answer.get_by_label("Your correction")).to_contain_text("Better.")
    (kept,) = site.feedback()
    assert (kept["value"], kept["correction"]) == (None, "Better.")
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")


def test_a_key_that_may_only_chat_rates_by_token(page: Page, site: Site) -> None:
    enter(page, site.key("chat"))
    expect(page.get_by_label("Two answers")).to_have_count(0)
    answer = ask(page, "Rate this by token.")
    answer.get_by_role("button", name="Good answer").click()
    answer.get_by_label("clear").check()
    answer.get_by_role("button", name="Save").click()
    expect(answer.get_by_label("clear")).to_have_count(0)
    (kept,) = site.feedback()
    assert (kept["value"], kept["tags"], kept["revision"]) == (1, ["clear"], 2)


def test_a_refused_vote_is_not_shown_as_given(chat: Page, site: Site) -> None:
    answer = ask(chat, "Erase this.")
    assert site.admin.delete(f"/v1/chat/completions/{site.completions()[0]['id']}").is_success
    answer.get_by_role("button", name="Good answer").click()
    expect(chat.get_by_role("status")).to_contain_text("Not saved:")
    expect(answer.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "false")


def test_regenerate_keeps_both_answers(chat: Page, site: Site) -> None:
    ask(chat, "Say it again.").get_by_role("button", name="Regenerate").click()
    expect(chat.get_by_text("Answer 2 of 2")).to_be_visible()
    expect(chat.get_by_role("status")).to_have_text("Answer complete.")
    assert len(site.completions()) == 2
    assert len({str(one["messages"]) for one in site.completions()}) == 1
    chat.get_by_role("button", name="Answer before").click()
    expect(chat.get_by_text("Answer 1 of 2")).to_be_visible()


@pytest.mark.parametrize(
    ("press", "tie", "said"),
    [
        ("B is better", None, "You preferred this answer."),
        ("A is better", None, "You preferred this answer."),
        ("Both bad", "bad", "You found both bad."),
    ],
)
def test_two_answers_are_compared_blind(chat: Page, site: Site, press: str, tie: str | None, said: str) -> None:
    sent: list[Any] = []
    chat.on("request", lambda one: sent.append(one.post_data_json) if one.url.endswith("/v1/comparisons") else None)
    chat.get_by_label("Two answers").check()
    chat.get_by_label("Message", exact=True).fill("Which is better?")
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("group", name="Which answer is better?").get_by_role("article")).to_have_count(2)
    expect(chat.get_by_role("button", name=press)).to_be_visible()
    expect(chat.get_by_text("version base")).to_have_count(0)
    assert violations(chat) == []
    shoot(chat, "compare")
    texts = [one.inner_text() for one in chat.get_by_role("article").all()]
    with chat.expect_response("**/v1/comparisons") as answered:
        chat.get_by_role("button", name=press).click()
    assert answered.value.status == 201
    expect(chat.get_by_text(said)).to_be_visible()
    expect(chat.get_by_text("version base")).to_be_visible()
    ids = {f"Answer {'AB'[one['id'].endswith('.1')]}": one["id"] for one in site.completions()}
    better, worse = ("Answer B", "Answer A") if press == "B is better" else ("Answer A", "Answer B")
    assert (sent[0]["chosen"], sent[0]["rejected"]) == (ids[better], ids[worse])
    assert sent[0].get("tie") == tie
    shown = chat.get_by_role("article").inner_text()
    assert texts[better == "Answer B"].split("\n")[-1] in shown


def test_the_server_asks_for_a_comparison(chat: Page, site: Site) -> None:
    site.services.settings.compare_share = 1
    chat.get_by_label("Message", exact=True).fill("Which is better?")
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("group", name="Which answer is better?").get_by_role("article")).to_have_count(2)
    expect(chat.get_by_text("version base")).to_have_count(0)
    with chat.expect_response("**/v1/comparisons") as answered:
        chat.get_by_role("button", name="A is better").click()
    assert answered.value.status == 201
    assert [one["arm"] for one in site.completions()] == ["stable", "stable"], "a rollout may count both"
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.get_by_text("Answer 3 of 3")).to_be_visible()  # no fourth: a turn is compared once


def test_two_versions_are_compared(chat: Page, site: Site) -> None:
    chat.get_by_label("Two answers").check()
    chat.get_by_label("Second answer by").select_option("policy@base")
    chat.get_by_label("Message", exact=True).fill("Which is better?")
    chat.keyboard.press("Enter")
    chat.get_by_role("button", name="B is better").click()
    expect(chat.get_by_text("You preferred this answer.")).to_be_visible()
    assert sorted(one["arm"] for one in site.completions()) == ["pinned", "stable"]


def test_a_hostile_answer_is_inert(chat: Page, site: Site) -> None:
    asked: list[str] = []
    chat.on("request", lambda request: asked.append(request.url))
    answer = ask(chat, "Be hostile \u202e please.")
    expect(answer.get_by_role("heading", name="Hostile")).to_be_visible()
    harmless = answer.locator("script, img, iframe, svg:not(button svg), [onerror], [onload], [src], [style]")
    expect(harmless).to_have_count(0)
    targets = [link.get_attribute("href") or "" for link in answer.get_by_role("link").all()]
    assert len(targets) == 2
    assert all(target.startswith(("http://", "https://")) for target in targets)
    expect(answer.get_by_role("link", name="a link")).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(answer).to_contain_text("photo[U+202E]gpj.exe")
    expect(chat.get_by_role("group", name="You")).to_contain_text("[U+202E]")
    shoot(chat, "hostile")
    answer.get_by_text("press me").click()
    chat.reload()
    chat.get_by_role("button", name="Be hostile").first.click()
    expect(chat.get_by_role("article").get_by_role("heading", name="Hostile")).to_be_visible()
    assert chat.evaluate("window.harmed") is None
    assert [url for url in asked if not url.startswith(site.url)] == []
    assert site.beacons == []


def test_the_pages_own_policy_stops_what_would_slip_through(chat: Page, problems: list[str]) -> None:
    """The last wall alone: elements put into the document past renderer and sanitiser."""
    page = chat
    port = page.evaluate("location.port")
    blocked = page.evaluate(
        """async (port) => {
          const blocked = [];
          addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
          const image = new Image();
          image.src = `http://127.0.0.1:${port}/beacon`;
          document.body.append(image);
          const script = document.createElement("script");
          try { script.textContent = "window.harmed = 1"; document.body.append(script); } catch {}
          try { document.body.insertAdjacentHTML("beforeend", "<p>x</p>"); } catch {}
          await new Promise((done) => setTimeout(done, 300));
          return blocked;
        }""",
        port,
    )
    assert {"img-src", "require-trusted-types-for"} <= set(blocked)
    assert page.evaluate("window.harmed") is None
    assert problems
    problems.clear()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, site: Site, theme: Any) -> None:
    page.emulate_media(color_scheme=theme)
    page.goto("/")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert violations(page) == []
    enter(page, site.key("chat", "feedback"))
    assert violations(page) == []
    answer = ask(page, "Show every shape.")
    answer.get_by_role("button", name="Bad answer").click()
    expect(answer.get_by_label("off topic")).to_be_visible()
    assert violations(page) == []
    shoot(page, f"shapes-{theme}")
    answer.get_by_role("button", name="Cancel").click()
    answer.get_by_role("button", name="Correct").click()
    assert violations(page) == []


def test_by_keyboard_alone(page: Page, site: Site) -> None:
    page.goto("/")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type(site.key("chat", "feedback"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Answer complete.")
    assert site.completions()[0]["messages"][0]["content"] == "One line\nand another"
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    _tab_to(page, "Bad answer", back=True)
    page.keyboard.press("Enter")
    expect(page.get_by_label("wrong")).to_be_focused()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect(page.get_by_label("wrong")).to_have_count(0)
    (kept,) = site.feedback()
    assert (kept["value"], kept["tags"]) == (-1, ["wrong"])


def _tab_to(page: Page, name: str, *, back: bool = False) -> None:
    for _ in range(40):
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == name:
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError(f"{name} is not reached by Tab")


def test_a_narrow_screen(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 360, "height": 720})
    enter(page, site.key("chat", "feedback"))
    ask(page, "Show every shape.")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert violations(page) == []
    shoot(page, "narrow")
    expect(page.get_by_role("navigation")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("navigation")).to_be_visible()
    assert violations(page) == []
    shoot(page, "narrow-history")
    page.keyboard.press("Escape")
    expect(page.get_by_role("navigation")).to_be_hidden()


def test_history_stays_in_the_browser(chat: Page, site: Site) -> None:
    ask(chat, "First subject.")
    chat.get_by_role("button", name="New chat").click()
    expect(chat.get_by_role("article")).to_have_count(0)
    ask(chat, "Second subject.")
    chat.reload()
    chat.get_by_role("button", name="First subject.", exact=True).click()
    expect(chat.get_by_role("group", name="You")).to_have_text("First subject.")
    ask(chat, "More of it.")
    assert [m["role"] for m in site.completions()[0]["messages"]] == ["user", "assistant", "user"]
    chat.get_by_role("button", name=re.compile("Delete conversation “Second")).click()
    expect(chat.get_by_role("button", name="Second subject.", exact=True)).to_have_count(0)
    chat.reload()
    expect(chat.get_by_role("button", name="First subject.", exact=True)).to_be_visible()
    expect(chat.get_by_role("button", name="Second subject.", exact=True)).to_have_count(0)


def test_an_engine_that_fails_is_told_and_can_be_asked_again(chat: Page, site: Site) -> None:
    site.engine.fail_after_tokens = 3
    chat.get_by_label("Message", exact=True).fill("Break.")
    chat.keyboard.press("Enter")
    expect(chat.get_by_text("No answer:")).to_be_visible()
    expect(chat.get_by_role("status")).to_have_text("No answer.")
    site.engine.fail_after_tokens = None
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.get_by_text("No answer:")).to_have_count(0)
    expect(chat.get_by_role("status")).to_have_text("Answer complete.")


def test_a_conversation_that_grew_too_long_says_how_to_go_on(chat: Page, site: Site) -> None:
    ask(chat, "A first question.")
    site.engine.refuse = EngineRefused(400, "Too many tokens.", code="context_length_exceeded", param="messages")
    chat.get_by_label("Message", exact=True).fill("A second.")
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("article").last).to_contain_text("longer than the model can read. Start a new chat")
    expect(chat.get_by_role("status")).to_have_text("No answer.")
    chat.reload()
    chat.get_by_role("button", name="A first question.", exact=True).click()
    expect(chat.get_by_role("article").last).to_contain_text("Start a new chat")
    site.engine.refuse = None
    chat.get_by_role("button", name="New chat").click()
    ask(chat, "A second.")


def test_chinese_and_the_chosen_colours_are_kept(chat: Page, site: Site) -> None:
    ask(chat, "你好 show every shape")
    chat.get_by_label("Language").select_option("zh")
    chat.get_by_label("颜色").select_option("dark")
    expect(chat.get_by_role("button", name="回答得好")).to_be_visible()
    chat.reload()
    expect(chat.get_by_label("消息", exact=True)).to_be_visible()
    assert chat.evaluate("[document.documentElement.lang, document.documentElement.dataset.theme]") == [
        "zh-Hans",
        "dark",
    ]
    chat.get_by_role("button", name="你好 show every shape", exact=True).click()
    assert violations(chat) == []
    shoot(chat, "chinese-dark")


def test_copy_is_told_to_the_server(chat: Page, site: Site) -> None:
    answer = ask(chat, "Copy this.")
    with chat.expect_response("**/v1/events") as told:
        answer.get_by_role("button", name="Copy").click()
    assert told.value.status == 201
    assert chat.evaluate("navigator.clipboard.readText()").startswith("[fake engine]")
