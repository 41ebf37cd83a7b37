"""The operators' console as a person uses it. What it shows is what the API says; what it does, the server did."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.pages.conftest import Site
from tests.pages.looks import SHOTS, shoot, violations
from tests.pages.loop import Loop

VIEWS = ["Is it learning?", "Versions", "Rollout", "Training", "Answers and votes", "Keys", "Audit log"]
HOSTILE = (
    '=HYPERLINK("http://127.0.0.1:{port}/beacon?csv")<script>window.harmed = 1</script>'
    '<img src="http://127.0.0.1:{port}/beacon?img" onerror="window.harmed = 2">'
    "[x](javascript:window.harmed=3) photo\u202egpj.exe"
)


@pytest.fixture
def loop(site: Site) -> Loop:
    return Loop(site)


def enter(page: Page, key: str) -> None:
    page.goto("/console")
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("live", exact=True)).to_be_visible()


def go(page: Page, view: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=view).click()
    expect(page.get_by_role("heading", name=view, level=2).first).to_be_visible()


@pytest.fixture
def console(page: Page, site: Site) -> Page:
    enter(page, site.key("operator"))
    return page


def confirm(page: Page, verb: str, reason: str) -> None:
    """Answer the question with a reason."""
    dialog = page.get_by_role("dialog")
    button = dialog.get_by_role("button", name=verb)
    expect(button).to_be_disabled()
    dialog.get_by_label("Reason").fill(reason)
    button.click()
    expect(dialog).to_have_count(0)


def test_only_those_who_may_look_in_are_let_in(page: Page, site: Site) -> None:
    page.goto("/console")
    page.get_by_label("Key", exact=True).fill(site.key("chat"))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("it takes viewer or operator")


def test_the_loop_at_a_glance(console: Page, loop: Loop) -> None:
    expect(console.get_by_text("Nobody has rated an answer in this time.")).to_be_visible()
    loop.rate([True] * 5 + [False] * 15, user="early")
    loop.publish(0.62)
    loop.publish(0.41, passed=False)
    loop.call("POST", "/v1/versions/v1/promote", {"reason": "test"})
    loop.rate([True] * 18 + [False] * 2, user="late")
    tile = console.get_by_label("Serves now")
    expect(tile).to_contain_text("v1")
    headline = "Users rate v1 higher than base: 90 % thumbs up"
    expect(console.get_by_text(headline)).to_be_visible()
    expect(console.get_by_label("Rated answers waiting")).to_contain_text("20")
    expect(console.get_by_label("Last refusal")).to_contain_text("v2 was refused by the gate")
    expect(console.get_by_label("Last refusal")).to_contain_text("win_rate = 0.41")
    expect(console.get_by_label("Engine")).to_contain_text("1 of 1 replicas ready")
    figure = console.get_by_role("figure").filter(has_text="Thumbs-up rate by version")
    expect(figure.locator("canvas")).to_have_count(1)
    (base, first) = loop.call("GET", "/v1/statistics/votes")["versions"]
    figure.get_by_text("As a table").click()
    row = figure.get_by_role("row").filter(has_text="v1")
    expect(row.get_by_role("cell").last).to_have_text(str(first["up"] + first["down"]))
    expect(figure.get_by_role("row").filter(has_text="base")).to_contain_text(f"{base['up_rate']:.4f}"[:5])
    figure.get_by_text("As a table").click()
    figure.locator(".canvas").focus()
    console.keyboard.press("ArrowRight")
    expect(figure.locator(".tip")).to_contain_text("n = ")
    for title in ("Held-out reward", "Reward model on unseen votes", "Distance from the reference (KL)", "Growth of"):
        expect(console.get_by_role("figure").filter(has_text=title).locator("canvas")).to_have_count(1)
    shoot(console, "console-learning", whole=True)


def test_the_trainer_is_followed_without_a_reload(console: Page, loop: Loop) -> None:
    _, run = loop.run()
    console.evaluate("window.sameDocument = true")
    card = console.get_by_label("The trainer now")
    loop.report(run, stage="reward")
    expect(card).to_contain_text("v1 out of base")
    expect(card).to_contain_text("stage reward")
    for step in (3, 6):
        loop.report(run, stage="policy", step=step, progress=step / 24, metrics={"ppo/kl": 0.125 * step})
    expect(card).to_contain_text("step 6 of 24")
    expect(card).to_contain_text("this stage ends in about")
    expect(card.get_by_role("progressbar")).to_have_attribute("value", "6")
    expect(card.get_by_role("row").filter(has_text="ppo/kl")).to_contain_text("0.75")
    shoot(console, "console-trainer")
    loop.report(run, state="failed", reason="out of memory")
    expect(console.get_by_label("Last refusal")).to_contain_text("out of memory")
    assert console.evaluate("window.sameDocument") is True


def test_a_version_with_its_gate_proof_and_card(console: Page, loop: Loop) -> None:
    name = loop.publish(0.62)
    loop.publish(0.41, passed=False)
    loop.call("POST", f"/v1/versions/{name}/promote", {"reason": "test"})
    for win_rate, passed in ((0.6, True), (0.39, False), (0.66, True)):
        loop.publish(win_rate, passed=passed)
    go(console, "Versions")
    lineage = console.get_by_role("list", name="Lineage")
    expect(lineage.get_by_role("listitem")).to_have_count(6)
    expect(lineage.get_by_role("button", name="v2")).to_contain_text("refused by the gate")
    expect(lineage.get_by_role("button", name="v5")).to_contain_text("from v1")
    lineage.get_by_role("button", name="v1 ready").click()
    known = loop.call("GET", f"/v1/versions/{name}")
    lines = console.get_by_role("region", name="Gate").get_by_role("row")
    expect(lines).to_have_count(1 + len(known["gate"]["checks"]))
    expect(lines.filter(has_text="win rate")).to_contain_text("0.53 – 0.71")
    proof = console.get_by_role("region", name="Proof on each replica")
    expect(proof.get_by_role("row").filter(has_text="fake-0")).to_contain_text("passed")
    card = console.get_by_label("Model card")
    expect(card).to_contain_text(known["fingerprint"])
    expect(card).to_contain_text("2 up, 2 down, 0 comparisons")
    shoot(console, "console-versions", whole=True)


def test_promote_and_roll_back_with_a_reason(console: Page, loop: Loop) -> None:
    name = loop.publish()
    go(console, "Versions")
    console.get_by_role("list", name="Lineage").get_by_role("button", name=name).click()
    console.get_by_role("button", name=f"Promote {name}").click()
    expect(console.get_by_role("dialog")).to_contain_text("becomes stable")
    shoot(console, "console-promote")
    console.keyboard.press("Escape")
    expect(console.get_by_role("dialog")).to_have_count(0)
    assert loop.stable() == "base"
    console.get_by_role("button", name=f"Promote {name}").click()
    confirm(console, f"Promote {name}", "better in review")
    expect(console.get_by_role("status")).to_contain_text(f"stable → {name}")
    assert loop.stable() == name
    entry = loop.audited()[0]
    assert "better in review" in json.dumps(entry)
    expect(console.get_by_role("button", name=f"Promote {name}")).to_have_count(0)  # it serves: known without a reload
    console.get_by_role("button", name="Roll back").click()
    expect(console.get_by_label("Back to")).to_have_value("previous")
    confirm(console, "Roll back", "users complain")
    expect(console.get_by_role("status")).to_contain_text("stable → base")
    assert loop.stable() == "base"
    assert "users complain" in json.dumps(loop.audited()[0])


def test_a_refused_deed_is_told_and_the_question_stays(console: Page, loop: Loop) -> None:
    name = loop.publish()
    go(console, "Versions")
    console.get_by_role("list", name="Lineage").get_by_role("button", name=name).click()
    console.get_by_role("button", name=f"Promote {name}").click()
    console.route("**/promote", lambda route: route.fulfill(status=409, body=json.dumps({"error": {"message": "No."}})))
    dialog = console.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("why not")
    dialog.get_by_role("button", name=f"Promote {name}").click()
    expect(dialog.get_by_role("alert")).to_have_text("No.")
    assert loop.stable() == "base"


def test_a_rollout_from_its_begin_to_its_end(console: Page, loop: Loop) -> None:
    name = loop.publish()
    go(console, "Rollout")
    expect(console.get_by_text("No rollout is under way.")).to_be_visible()
    form = console.get_by_role("form", name="Begin a rollout")
    expect(form.get_by_label("candidate")).to_have_value(name)
    form.get_by_label("Shares of users").fill("50")
    form.get_by_role("button", name="Begin a rollout").click()
    confirm(console, "Begin a rollout", "let us see")
    shown = console.get_by_role("region", name=f"{name} against base")
    expect(shown).to_contain_text("running")
    (rollout,) = loop.call("GET", "/v1/rollouts")["data"]
    assert (rollout["candidate"], rollout["steps"][0]["weight"], rollout["reason"]) == (name, 0.5, "let us see")
    loop.rate([True, False] * 12, user="split")
    report = loop.call("GET", f"/v1/rollouts/{rollout['id']}")["report"]
    arms = console.get_by_role("region", name="arm").get_by_role("row")
    expect(arms.filter(has_text="candidate")).to_contain_text(str(report["canary"]["exposed"]))
    expect(shown).to_contain_text(loop.call("GET", f"/v1/rollouts/{rollout['id']}")["report"]["words"][:40])
    expect(shown).to_contain_text("to 1; rolled back at 20")
    expect(shown).to_contain_text("Users fall on the arms as the weights say")
    shoot(console, "console-rollout", whole=True)
    for verb, state in (("Pause", "paused"), ("Go on", "running"), ("End it", "ended")):
        shown.get_by_role("button", name=verb).click()
        confirm(console, verb, f"because of {verb}")
        expect(shown.locator(".badge").first).to_have_text(state)
    now = loop.call("GET", f"/v1/rollouts/{rollout['id']}")
    assert (now["state"], now["reason"]) == ("aborted", "because of End it")
    expect(shown.get_by_role("button")).to_have_count(0)
    form.get_by_label("Shares of users").fill("100")
    expect(form.get_by_role("button", name="Begin a rollout")).to_be_disabled()


def test_a_rollout_is_promoted_by_a_person(console: Page, loop: Loop) -> None:
    name = loop.publish()
    loop.call("POST", "/v1/rollouts", {"candidate": name, "steps": [{"weight": 0.2}]})
    go(console, "Rollout")
    console.get_by_role("button", name="Promote the candidate").click()
    confirm(console, "Promote the candidate", "the evidence is enough for me")
    rows = console.get_by_role("region", name="Earlier rollouts").last.get_by_role("row")
    expect(rows.nth(1)).to_contain_text("promoted")
    assert loop.stable() == name


def test_batches_with_what_they_dropped_and_runs_with_their_metrics(console: Page, loop: Loop) -> None:
    answer = loop.ask("Do not learn this.", train=False, user="no")
    loop.call("POST", "/v1/feedback", {"response_id": answer["id"], "value": False, "end_user": "no"})
    loop.publish()
    go(console, "Training")
    batches = console.get_by_role("region", name="Batches").last
    expect(batches.get_by_role("row").nth(1)).to_contain_text("1 no consent")
    expect(batches.get_by_role("row").nth(1)).to_contain_text("consumed")
    runs = console.get_by_role("region", name="Runs").last
    expect(runs.get_by_role("row").nth(1)).to_contain_text("published")
    figure = console.get_by_role("figure")
    expect(figure).to_contain_text("v1: ppo/kl")
    console.get_by_role("main").get_by_role("combobox").select_option("ppo/length")
    expect(figure.locator("canvas")).to_have_count(1)
    shoot(console, "console-training", whole=True)
    with console.expect_download() as saving:
        figure.get_by_role("button", name="as CSV").click()
    rows = read_csv(Path(saving.value.path()))
    assert [row["ppo/length"] for row in rows] == ["31", "32", "33", "34", "35", "36"]
    with console.expect_download() as saving:
        figure.get_by_role("button", name="as PNG").click()
    picture = Path(saving.value.path()).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    (SHOTS / "console-exported-plot.png").write_bytes(picture)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def rows_of(page: Page, name: str) -> Locator:
    return page.get_by_role("list", name=name).get_by_role("listitem")


def test_answers_are_narrowed_paged_and_exported(console: Page, loop: Loop) -> None:
    loop.rate([True] * 25, user="many")
    loop.ask("The one with a label.", user="ada", metadata={"page": "help"})
    go(console, "Answers and votes")
    rows = rows_of(console, "Answers")
    expect(rows).to_have_count(20)
    expect(rows.first).to_contain_text("The one with a label.")
    console.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(26)
    shoot(console, "console-answers")
    console.get_by_label("Metadata").fill("page=help")
    console.get_by_role("button", name="Show", exact=True).click()
    expect(rows).to_have_count(1)
    console.get_by_role("button", name="Clear").click()
    console.get_by_label("End user").fill("many-3")
    console.get_by_role("button", name="Show", exact=True).click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("Question 3 of many?")
    console.get_by_role("button", name="Clear").click()
    with console.expect_download() as saving:
        console.get_by_role("button", name="Export JSON lines").click()
    lines = [json.loads(line) for line in Path(saving.value.path()).read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 26
    assert lines[0] == loop.call("GET", "/v1/chat/completions?limit=1")["data"][0]
    expect(console.get_by_role("status")).to_have_text("26 rows exported.")
    rows.nth(1).get_by_role("button", name="Its votes").click()
    expect(console.get_by_role("region", name="Votes and words").last.get_by_role("row")).to_have_count(2)


def test_news_do_not_undo_a_wish_for_more(console: Page, loop: Loop) -> None:
    loop.rate([True] * 25, user="many")
    go(console, "Answers and votes")
    rows = rows_of(console, "Answers")
    expect(rows).to_have_count(20)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    console.route(re.compile(r"/chat/completions\?.*after="), hold)
    console.get_by_role("button", name="Show more").click()
    loop.ask("Asked while more was on its way.", user="ada")
    newer = console.get_by_role("button", name="Newer ones came: show them")
    expect(newer).to_be_visible()
    (more,) = held
    more.continue_()
    expect(rows).to_have_count(25)
    newer.click()
    expect(rows.first).to_contain_text("Asked while more was on its way.")


def test_votes_are_narrowed_by_thumb(console: Page, loop: Loop) -> None:
    loop.rate([True, True, False], user="some")
    go(console, "Answers and votes")
    console.get_by_role("button", name="Votes and words").click()
    rows = console.get_by_role("region", name="Votes and words").last.get_by_role("row")
    expect(rows).to_have_count(4)
    console.get_by_role("combobox", name="Vote").select_option("down")
    console.get_by_role("button", name="Show", exact=True).click()
    expect(rows).to_have_count(2)
    expect(rows.last).to_contain_text("thumbs down")


def test_a_vote_is_seen_as_it_comes(console: Page, loop: Loop) -> None:
    (answer,) = loop.rate([False], user="one")
    go(console, "Answers and votes")
    console.get_by_role("button", name="Votes and words").click()
    rows = console.get_by_role("region", name="Votes and words").last.get_by_role("row")
    expect(rows).to_have_count(2)
    said = {"response_id": answer, "value": True, "end_user": "one-0", "comment": "On second thought."}
    loop.call("POST", "/v1/feedback", said)
    expect(rows.last).to_contain_text("On second thought.")


def test_hostile_text_is_inert_here_and_in_files(console: Page, loop: Loop, beacon: tuple[int, list[bytes]]) -> None:
    asked: list[str] = []
    console.on("request", lambda request: asked.append(request.url))
    hostile = HOSTILE.format(port=beacon[0])
    answer = loop.ask(f"Be hostile {hostile}", user="mallory")
    said = {"response_id": answer["id"], "value": False, "end_user": "mallory"}
    loop.call("POST", "/v1/feedback", said | {"comment": hostile, "correction": hostile, "tags": ["=1+1"]})
    loop.call("POST", "/v1/keys", {"name": "=cmd|' /C calc'!A0<script>x</script>", "roles": ["chat"]})
    _, run = loop.run()
    loop.report(run, stage="<img src=x>", metrics={"<b>kl</b>": 1.0}, step=1, state="failed", reason=hostile)
    for view in ("Is it learning?", "Training", "Audit log", "Answers and votes"):
        go(console, view)
        expect(console.get_by_text("Not answered")).to_have_count(0)
        expect(console.locator("main :is(script, iframe, [onerror], [onload], img)")).to_have_count(0)
    expect(console.get_by_text("[U+202E]").first).to_be_visible()
    console.get_by_role("button", name="Votes and words").click()
    table = console.get_by_role("region", name="Votes and words").last
    expect(table).to_contain_text("<script>window.harmed = 1</script>")
    expect(table).to_contain_text("photo[U+202E]gpj.exe")
    expect(console.locator("main a")).to_have_count(0)
    shoot(console, "console-hostile")
    with console.expect_download() as saving:
        console.get_by_role("button", name="Export CSV").click()
    cells = [cell for row in read_csv(Path(saving.value.path())) for cell in row.values() if isinstance(cell, str)]
    assert [cell for cell in cells if re.match(r"\s*[=+@]|\s*-(?!\d+$)", cell)] == []
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert "'=1+1" in cells
    assert not any("\u202e" in cell for cell in cells)
    assert console.evaluate("window.harmed") is None
    assert [url for url in asked if not url.startswith((loop.site.url, "blob:"))] == []
    assert loop.site.beacons == []


def test_keys_are_made_shown_once_and_revoked(page: Page, site: Site) -> None:
    enter(page, site.key("admin"))
    go(page, "Keys")
    form = page.get_by_role("form", name="Make a key")
    form.get_by_label("Name").fill("reviewers")
    expect(form.get_by_role("button", name="Make it")).to_be_disabled()
    form.get_by_label("feedback: rate").check()
    form.get_by_label("viewer: see everything").check()
    form.get_by_role("button", name="Make it").click()
    field = page.get_by_role("textbox", name="The secret of reviewers")
    expect(field).to_be_focused()
    secret = field.input_value()
    shoot(page, "console-keys")
    own = site.admin.get("/v1/keys/self", headers={"Authorization": f"Bearer {secret}"}).json()
    assert own["roles"] == ["feedback", "viewer"]
    page.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == secret
    page.get_by_role("button", name="Close").click()
    go(page, "Audit log")
    go(page, "Keys")
    expect(page.get_by_role("button", name="Revoke reviewers")).to_be_visible()
    expect(page.get_by_role("textbox", name="The secret of reviewers")).to_have_count(0)
    page.get_by_role("button", name="Revoke reviewers").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("button", name="Revoke reviewers")).to_have_count(0)
    refused = site.admin.get("/v1/keys/self", headers={"Authorization": f"Bearer {secret}"})
    assert refused.status_code == 401


def test_the_audit_log_shows_who_did_what(console: Page, loop: Loop) -> None:
    name = loop.publish()
    loop.call("POST", f"/v1/versions/{name}/promote", {"reason": "a reason to remember"})
    go(console, "Audit log")
    rows = console.get_by_role("region", name="Audit log").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("a reason to remember")
    shoot(console, "console-audit")
    with console.expect_download() as saving:
        console.get_by_role("button", name="Export CSV").click()
    assert read_csv(Path(saving.value.path()))[0]["action"] == loop.audited()[0]["action"]


def test_a_viewer_sees_no_button_for_what_they_may_not_do(page: Page, site: Site, loop: Loop) -> None:
    name = loop.publish()
    loop.call("POST", "/v1/rollouts", {"candidate": name, "steps": [{"weight": 0.2}]})
    enter(page, site.key("viewer"))
    links = page.get_by_role("navigation").get_by_role("link")
    assert links.all_inner_texts() == [view for view in VIEWS if view != "Keys"]
    go(page, "Versions")
    page.get_by_role("list", name="Lineage").get_by_role("button", name=name).click()
    expect(page.get_by_role("heading", name="Gate", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Promote|Roll back"))).to_have_count(0)
    go(page, "Rollout")
    expect(page.get_by_role("region", name=f"{name} against base")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Promote|Pause|Go on|End it|Begin"))).to_have_count(0)
    page.goto("/console#keys")
    expect(page.get_by_role("heading", name="Is it learning?", level=2)).to_be_visible()


def test_a_revoked_key_is_shown_the_door(page: Page, site: Site) -> None:
    site.services.live._keep_alive_s = 0.3
    made = site.admin.post("/v1/keys", json={"name": "brief", "roles": ["viewer"]}).json()
    enter(page, made["secret"])
    site.admin.delete(f"/v1/keys/{made['id']}")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert page.evaluate("[sessionStorage.length, localStorage.getItem('plaudit.key')]") == [0, None]


def test_where_too_many_listen_it_asks_again_and_again(page: Page, site: Site, loop: Loop) -> None:
    busy = {"error": {"message": "Too many listen already.", "type": "overloaded_error", "code": "too_many_listeners"}}
    page.route("**/v1/live", lambda route: route.fulfill(status=503, body=json.dumps(busy)))
    page.goto("/console")
    page.get_by_label("Key", exact=True).fill(site.key("viewer"))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text("asked every 5 s")).to_be_visible()
    expect(page.get_by_label("Rated answers waiting")).to_contain_text("0")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, site: Site, loop: Loop, theme: Any) -> None:
    page.emulate_media(color_scheme=theme)
    loop.rate([True] * 6 + [False] * 3)
    name = loop.publish()
    loop.publish(0.4, passed=False)
    loop.call("POST", "/v1/rollouts", {"candidate": name, "steps": [{"weight": 0.5}]})
    loop.rate([True] * 6 + [False] * 3, user="split")
    page.goto("/console")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert violations(page) == []
    enter(page, site.key("admin"))
    for view in VIEWS:
        go(page, view)
        expect(page.get_by_text("Loading …")).to_have_count(0)
        if view in ("Is it learning?", "Training"):
            expect(page.locator("canvas").first).to_be_visible()
        assert (view, violations(page)) == (view, [])
        if theme == "dark":
            shoot(page, f"console-dark-{VIEWS.index(view)}")
    go(page, "Rollout")
    page.get_by_role("button", name="End it").click()
    assert violations(page) == []


def test_by_keyboard_alone(page: Page, site: Site, loop: Loop) -> None:
    name = loop.publish()
    page.goto("/console#versions")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.type(site.key("operator"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("list", name="Lineage")).to_be_visible()
    _tab_to(page, name)
    page.keyboard.press("Enter")
    _tab_to(page, f"Promote {name}")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Reason")).to_be_focused()
    page.keyboard.type("typed")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text(f"stable → {name}")
    assert loop.stable() == name


def _tab_to(page: Page, text: str) -> None:
    for _ in range(60):
        if page.evaluate("document.activeElement.innerText.trim()").startswith(text):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{text} is not reached by Tab")


def test_a_narrow_screen(page: Page, site: Site, loop: Loop) -> None:
    page.set_viewport_size({"width": 360, "height": 720})
    loop.rate([True, False] * 3)
    loop.publish()
    enter(page, site.key("admin"))
    for view in VIEWS:
        page.get_by_role("button", name="Views").click()
        go(page, view)
        expect(page.get_by_role("navigation")).to_be_hidden()
        expect(page.get_by_text("Loading …")).to_have_count(0)
        assert (view, page.evaluate("document.documentElement.scrollWidth")) == (view, 360)
        shoot(page, f"console-narrow-{VIEWS.index(view)}")
    assert violations(page) == []


def test_chinese_and_dark(console: Page, loop: Loop) -> None:
    loop.rate([True] * 6 + [False] * 3)
    loop.publish()
    console.get_by_label("Language").select_option("zh")
    console.get_by_label("颜色").select_option("dark")
    expect(console.get_by_role("heading", name="在进步吗？", level=2)).to_be_visible()
    expect(console.get_by_role("figure").filter(has_text="各版本的赞成率").locator("canvas")).to_have_count(1)
    assert violations(console) == []
    shoot(console, "console-chinese-dark", whole=True)
