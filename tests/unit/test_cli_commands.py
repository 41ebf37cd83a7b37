"""The commands against a scripted server: what they print, and how they end."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner, Result

from plaudit import __version__
from plaudit.cli import app
from plaudit.cli._session import Session
from plaudit.cli.keys import RoleName
from plaudit.cli.rollouts import GUARDRAILS
from plaudit.cli.runs import draw_bar
from plaudit.wire.ops import Role
from plaudit.wire.rollouts import GuardrailName
from plaudit.wire.training import Run
from tests.support import sdk_harness as h

MOMENT = "2026-01-02T03:04:05Z"
GATE = {
    "passed": False,
    "checks": [
        {"name": "kl", "passed": True, "value": 0.02, "low": 0.01, "high": 0.03, "n": 64, "bound": "≤ 0.1"},
        {"name": "win_rate", "passed": False, "value": 0.41, "low": 0.3, "high": 0.52, "n": 80, "bound": "≥ 0.48"},
    ],
}
REPLICA = {"replica": "r0", "passed": True, "slope": 0.987, "low": 0.95, "high": 1.02, "tokens": 2048}
REPLICA |= {"tensors_expected": 12, "tensors_matched": 12}
PROOF = {"passed": True, "replicas": [REPLICA], "checked_at": MOMENT, "seconds": 3.2}
V2 = h.version_json("v2", parent="v1", aliases=["stable"], proof=PROOF, records=64)
V3 = h.version_json("v3", state="rejected", reason="win rate too low", gate=GATE)
HEALTH = {"status": "ok", "release": __version__, "engine": "ready", "stable": "v2", "uptime_s": 12.0}
HEALTH |= {"replicas": [{"replica": "r0", "state": "ready"}], "trainer_seen_at": "2999-01-01T00:00:00Z"}
E1 = {"name": "engine-1", "url": "http://a", "source": "operator", "state": "ready", "resident": ["base", "v2"]}
KEY = {"id": "key_1", "name": "app", "roles": ["chat"], "hint": "plk_ab", "created_at": MOMENT}
UNSEEN = HEALTH | {"trainer_seen_at": None}

FEEDBACK = "/v1/feedback"
NONE: dict[str, Any] = h.page_json([])


class Server:
    """A fake server with an answer for each method and path; anything else is 404."""

    def __init__(self, **routes: Any) -> None:
        self.routes: dict[str, Any] = {
            "GET /healthz": healthy,
            "GET /readyz": healthy,
            "GET /v1/models": h.page_json([]),
            "GET /v1/versions": h.page_json([V3, V2]),
            "GET /v1/versions/v2": V2,
            "GET /v1/versions/v3": V3,
            "POST /v1/versions/v2/promote": h.alias_json(version="v2"),
            "GET /v1/aliases": h.page_json([h.alias_json(version="v2"), h.alias_json("previous", "v1")]),
            "POST /v1/rollback": h.alias_json(version="v1"),
            "GET /v1/training/runs": h.page_json([h.run_json(stage="ppo", progress=0.5)]),
            "GET /v1/training/runs/run_1": h.run_json(stage="ppo", progress=0.5, metrics={"kl": 0.0123456}),
            "POST /v1/feedback": rate,
            "DELETE /v1/feedback/fb_1": {"id": "fb_1", "object": "feedback.deleted"},
            "GET /v1/feedback/fb_1": h.feedback_json(value=None, retracted=True),
            "GET /v1/keys/self": {"object": "key.own", "id": "key_1", "name": "ops", "roles": ["admin"]},
            f"DELETE /v1/chat/completions/{h.ANSWER_ID}": {"id": h.ANSWER_ID, "object": "chat.completion.deleted"},
            "GET /v1/rollouts": h.page_json([h.rollout_json()]),
            "GET /v1/rollouts/rollout_1": h.rollout_json(report=h.rollout_report_json()),
            "POST /v1/rollouts": h.rollout_json(),
            **{f"POST /v1/rollouts/rollout_1/{verb}": h.rollout_json() for verb in ("promote", "pause", "resume")},
            "GET /v1/feedback": h.page_json([h.feedback_json(comment="so \x1b[31mclear", tags=["short"])]),
            "GET /v1/keys": h.page_json([KEY]),
            "POST /v1/keys": KEY | {"secret": "plk_secret"},
            "DELETE /v1/keys/key_1": KEY | {"revoked_at": MOMENT},
            "POST /v1/rollouts/rollout_1/abort": h.rollout_json(state="aborted", reason="no use"),
            "GET /v1/replicas": h.page_json([E1]),
            "POST /v1/replicas": E1,
            "POST /v1/replicas/engine-1/drain": E1 | {"draining": True, "in_flight": 3},
            "DELETE /v1/replicas/engine-1": E1 | {"removed": True},
            "POST /v1/chat/completions": talk,
        } | routes
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        found = self.routes.get(f"{request.method} {request.url.path}")
        if found is None:
            return h.refusal(404, message=f"no {request.url.path}", x_request_id="req-7")
        if isinstance(found, httpx.Response):
            return h.fresh(found)
        return found(request) if callable(found) else httpx.Response(200, json=found)

    def sent(self, path: str) -> list[Any]:
        """The bodies sent to a path."""
        return [json.loads(r.content) for r in self.requests if r.url.path == path and r.content]


def rate(request: httpx.Request) -> httpx.Response:
    """Keeps a vote, or takes it back."""
    value = json.loads(request.content).get("value", 0)
    return httpx.Response(201, json=h.feedback_json(value=None, retracted=True) if value is None else h.feedback_json())


def healthy(_: httpx.Request, **changes: Any) -> httpx.Response:
    """Health with the time of day."""
    return httpx.Response(200, json=HEALTH | {"now": datetime.now(UTC).isoformat()} | changes)


def talk(request: httpx.Request) -> httpx.Response:
    """Says Paris, streamed or whole."""
    if json.loads(request.content).get("stream"):
        return h.streamed(h.sse(h.chunk_json("Pa"), h.chunk_json("ris.\x1b[31m"), h.chunk_json(finish="stop")))
    return httpx.Response(200, json=h.completion_json(), headers=h.ANSWER_HEADERS)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PLAUDIT_URL", "PLAUDIT_API_KEY", "PLAUDIT_HOST", "PLAUDIT_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PLAUDIT_DATA", str(tmp_path))


def run(server: Callable[[httpx.Request], httpx.Response], *args: str, stdin: str = "") -> Result:
    session = Session(transport=httpx.MockTransport(server), clock=h.FakeClock())
    return CliRunner().invoke(app, ["--key", "plk_x", *args], input=stdin, obj=session, catch_exceptions=False)


def refuse_connection(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def test_versions_shows_why_each_may_serve_or_not() -> None:
    lines = run(Server(), "versions").stdout.splitlines()
    assert re.search(r"^v3 +rejected +base +fails win_rate .*win rate too low", lines[1])
    assert re.search(r"^v2 +ready +v1 +stable +0\.987 \[0\.95, 1\.02\] +64", lines[2])


def test_a_version_is_shown_with_its_gate_and_its_proof() -> None:
    gate = run(Server(), "versions", "show", "v3").stdout
    assert re.search(r"win_rate +NO +0\.41 +\[0\.3, 0\.52\] +80 +≥ 0\.48", gate)
    proof = run(Server(), "versions", "show", "v2").stdout
    assert re.search(r"r0 +yes +0\.987 +\[0\.95, 1\.02\] +2048 +12/12", proof)


def test_replicas_are_listed_and_changed() -> None:
    server = Server()
    assert re.search(r"engine-1 +ready +base, v2 +0 +http://a", run(server, "replicas").stdout)
    assert "engine-1 is on the list: http://a" in run(server, "replicas", "add", "http://a").stdout
    assert json.loads(server.requests[-1].content) == {"url": "http://a"}
    assert "3 in flight" in run(server, "replicas", "drain", "engine-1").stdout
    assert "engine-1 is off the list" in run(server, "replicas", "remove", "engine-1").stdout


SPOKEN = {
    "versions": "",
    "versions list": "",
    "versions show": "v2",
    "promote": "v2",
    "rollback": "--yes",
    "rollouts": "",
    "rollouts list": "",
    "rollouts show": "",
    "rollouts start": "v2",
    "rollouts promote": "",
    "rollouts pause": "",
    "rollouts resume": "",
    "rollouts abort": "",
    "runs": "",
    "runs list": "",
    "runs show": "run_1",
    "replicas": "",
    "replicas list": "",
    "replicas add": "http://a",
    "replicas drain": "engine-1",
    "replicas remove": "engine-1",
    "keys": "",
    "keys list": "",
    "keys create": "app --role chat",
    "keys revoke": "key_1",
    "rate": f"{h.ANSWER_ID} up",
    "chat": "hi",
    "watch": "--once",
    "export": "feedback",
    "import": "langfuse scores.json --dry-run",
    "doctor": "",
}
"""Each command with arguments for it. `tune` alone is missing: the trainer answers there."""


def verbs(command: Any = None, path: str = "") -> set[str]:
    """The commands that do something, groups that list by themselves included."""
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", {})
    found = {f"{path}{name}" for name in children if getattr(children[name], "invoke_without_command", True)}
    return found.union(
        *(verbs(child, f"{path}{name} ") for name, child in children.items() if hasattr(child, "commands"))
    )


def test_every_command_is_asked_for_json() -> None:
    assert verbs() == {*SPOKEN, "tune"}


@pytest.mark.parametrize("where", ["behind", "before"])
@pytest.mark.parametrize("verb", SPOKEN)
def test_every_command_speaks_json(verb: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps([{"name": "a", "value": 1, "traceId": h.ANSWER_ID}]))
    asked = [*verb.split(), *SPOKEN[verb].split()]
    result = run(Server(), *([*asked, "--json"] if where == "behind" else ["--json", *asked]))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


@pytest.mark.parametrize("args", ["watch --once", "export feedback", "chat hi", f"rate {h.ANSWER_ID} up", "chat -i"])
def test_json_cannot_steer_the_terminal_either(args: str) -> None:
    hostile = h.feedback_json(comment="\u202e\x9b31m\x1b[31m")
    whole = httpx.Response(200, json=h.completion_json("\u202e\x9b31m"))
    server = Server(
        **{
            "GET /v1/feedback": h.page_json([hostile]),
            "POST /v1/feedback": hostile,
            "POST /v1/chat/completions": whole,
        }
    )
    told = run(server, *args.split(), "--json", stdin="Hello\n/up\n" if "-i" in args else "").stdout
    assert told.isascii()
    assert "\x1b" not in told
    assert "\\u202e" in told


def test_promote_gives_its_reason() -> None:
    server = Server()
    assert run(server, "promote", "v2", "--reason", "better").stdout == "stable is v2\n"
    assert server.sent("/v1/versions/v2/promote") == [{"reason": "better"}]


def test_rollback_asks_and_does_nothing_without_a_yes() -> None:
    server = Server()
    asked = run(server, "rollback", stdin="n\n")
    assert "Move stable from v2 back to v1?" in asked.stderr
    assert asked.exit_code == 1
    assert server.sent("/v1/rollback") == []
    assert run(server, "rollback", stdin="y\n").stdout.endswith("stable is v1\n")
    assert run(server, "rollback", "--to", "base", "--reason", "odd", "-y").exit_code == 0
    assert server.sent("/v1/rollback") == [{"to": "previous"}, {"to": "base", "reason": "odd"}]


def test_one_question_is_answered_on_stdout_and_signed_on_stderr() -> None:
    server = Server()
    result = run(server, "chat", "Capital", "of", "France?", "--model", "policy@v1", "--system", "Be brief.")
    assert result.stdout == "Paris.[31m\n"  # the escape character is gone: text cannot steer the terminal
    assert result.stderr == f"(v1, stable · {h.ANSWER_ID})\n"
    (body,) = server.sent("/v1/chat/completions")
    assert body["model"] == "policy@v1"
    assert [message["content"] for message in body["messages"]] == ["Be brief.", "Capital of France?"]


def test_a_question_can_come_through_a_pipe() -> None:
    server = Server()
    assert run(server, "chat", stdin="Capital?\n").exit_code == 0
    assert server.sent("/v1/chat/completions")[0]["messages"][0]["content"] == "Capital?"


def test_nothing_to_ask_is_a_usage_error() -> None:
    assert run(Server(), "chat").exit_code == 2


def test_a_conversation_keeps_its_thread_and_rates_as_it_goes() -> None:
    server = Server()
    typed = "+\nHello\n+ so clear\nAnd?\n-\n/new\n-x is odd\n/quit\nnever\n"
    result = run(server, "chat", "-i", "--user", "ada", stdin=typed)
    assert result.exit_code == 1  # the first line failed, and a pipe is told
    assert "no answer to rate yet" in result.stderr
    assert [len(body["messages"]) for body in server.sent("/v1/chat/completions")] == [1, 3, 1]
    up, down = server.sent("/v1/feedback")
    assert (up["value"], up["comment"], up["end_user"]) == (1.0, "so clear", "ada")
    assert (down["value"], "comment" in down) == (-1.0, False)


def test_a_failed_turn_does_not_end_the_conversation() -> None:
    replies = iter([h.refusal(422, message="too long"), h.streamed(h.sse(h.chunk_json("ok")))])
    server = Server(**{"POST /v1/chat/completions": lambda _: next(replies)})
    result = run(server, "chat", "-i", stdin="a\nb\n")
    assert result.exit_code == 1
    assert "plaudit: too long" in result.stderr
    assert "ok" in result.stdout
    assert len(server.sent("/v1/chat/completions")[1]["messages"]) == 1


def test_what_is_said_of_one_answer_adds_up_until_the_other_thumb() -> None:
    server = Server()
    typed = "Hello\n/tags long, wrong\n/up nice\n/correct Paris!\n/down\n/retract\n/quit\n"
    result = run(server, "chat", "-i", stdin=typed)
    assert result.exit_code == 0
    assert result.stdout == "Paris.[31m\n"  # no prompt in a pipe, and receipts go to stderr
    said = [{name: value for name, value in body.items() if name != "response_id"} for body in server.sent(FEEDBACK)]
    tags = {"tags": ["long", "wrong"]}
    up = tags | {"value": 1.0, "comment": "nice"}
    assert said == [tags, up, up | {"correction": "Paris!"}, {"value": -1.0}, {"value": None}]


def test_a_conversation_in_json_is_a_line_an_answer_and_a_line_a_rating() -> None:
    result = run(Server(), "chat", "-i", "--json", stdin="Hello\n/up\n")
    answer, kept = map(json.loads, result.stdout.splitlines())
    assert (answer["id"], kept["value"]) == (h.ANSWER_ID, 1.0)


@pytest.mark.parametrize("line", ["/correct", "/tags", "/rate"])
def test_a_command_that_says_nothing_is_told(line: str) -> None:
    result = run(Server(), "chat", "-i", stdin=f"Hello\n{line}\n")
    assert result.exit_code == 1
    assert f"plaudit: {line}" in result.stderr or f"no {line}" in result.stderr


@pytest.mark.parametrize(("word", "value"), [("up", 1.0), ("down", -1.0), ("retract", None)])
def test_rate_sends_the_vote(word: str, value: float | None) -> None:
    server = Server()
    options = ["--comment", "hm", "--correction", "Lyon", "--tag", "a", "--tag", "b", "--end-user", "u"]
    told = "retracted (fb_1)" if value is None else "up for v1 (fb_1)"
    assert run(server, "rate", h.ANSWER_ID, word, *options).stdout.startswith(told)
    expected = {"response_id": h.ANSWER_ID, "value": value, "comment": "hm", "correction": "Lyon"}
    assert server.sent("/v1/feedback") == [expected | {"tags": ["a", "b"], "end_user": "u"}]


def test_runs_are_listed_and_shown() -> None:
    assert re.search(r"run_1 +v2 +v1 +running +ppo +50%", run(Server(), "runs").stdout)
    assert re.search(r"kl +0\.01235", run(Server(), "runs", "show", "run_1").stdout)


@pytest.mark.parametrize(("end", "code"), [("published", 0), ("rejected", 1)])
def test_watching_a_run_ends_with_it(end: str, code: int) -> None:
    replies = iter(
        [h.run_json(stage="reward"), h.run_json(stage="reward"), h.run_json(stage="ppo"), h.run_json(state=end)]
    )
    server = Server(**{"GET /v1/training/runs/run_1": lambda _: httpx.Response(200, json=next(replies))})
    result = run(server, "runs", "show", "run_1", "--watch")
    assert [line.split()[2] for line in result.stdout.splitlines()] == ["running", "running", end]
    assert result.exit_code == code


def test_on_a_terminal_a_run_is_a_bar_and_a_line_at_its_end() -> None:
    states = [h.run_json(stage="ppo", progress=0.5), h.run_json(state="published", progress=1.0)]
    screen = io.StringIO()
    ended = draw_bar(map(Run.model_validate, states), Console(file=screen, force_terminal=True, width=100))
    assert ended.state == "published"
    assert re.search(r"03:04:05  v2  published  100%\n", screen.getvalue())


def test_keys_are_made_listed_and_revoked() -> None:
    server = Server()
    assert run(server, "keys", "create", "app", "--role", "chat", "--role", "feedback").stdout == "plk_secret\n"
    assert server.sent("/v1/keys") == [{"name": "app", "roles": ["chat", "feedback"]}]
    assert re.search(r"key_1 +app +chat +plk_ab", run(server, "keys").stdout)
    assert run(server, "keys", "revoke", "key_1").stdout == "key_1 is revoked\n"
    assert run(server, "keys", "create", "app", "--role", "king").exit_code == 2


def test_guardrails_are_set_and_told() -> None:
    server = Server()
    bounds = ["--guardrail", "errors=0.01", "--guardrail", "ttft=off", "--guardrail-users", "80", "--on-breach", "hold"]
    assert run(server, "rollouts", "start", "v2", *bounds).exit_code == 0
    (body,) = server.sent("/v1/rollouts")
    assert body["guardrails"] == {"min_users": 80, "on_breach": "hold", "errors": 0.01, "ttft": None}
    assert run(server, "rollouts", "start", "v2").exit_code == 0
    assert "guardrails" not in server.sent("/v1/rollouts")[1]
    told = run(server, "rollouts", "show").stdout
    assert "errors 0.02, ttft 1.25, length 1.5, refusals 0.05; from 50 users an arm; rollback where one fires" in told


@pytest.mark.parametrize("bound", ["speed=1", "errors", "errors=2", "errors=x"])
def test_a_guardrail_that_is_none_is_a_usage_error(bound: str) -> None:
    server = Server()
    assert run(server, "rollouts", "start", "v2", "--guardrail", bound).exit_code == 2
    assert server.requests == []


def test_watch_shows_the_loop_once_where_stdout_is_no_terminal() -> None:
    server = Server()
    result = run(server, "watch")
    assert result.exit_code == 0
    for shown in (
        "engine ready",
        "stable v2, previous v1",
        "v3",
        "fails win_rate",
        "run_1",
        "Hold: 60 of 100",
        "short",
    ):
        assert shown in result.stdout
    assert "\x1b" not in result.stdout
    assert run(server, "watch", "--once").exit_code == 0


def test_watch_goes_on_while_the_server_is_away_and_ends_by_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    away = iter([False, True, True, True, False, False])
    naps: list[float] = []

    def nap(self: Session, seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Session, "sleep", nap)
    server = Server(
        **{"GET /v1/aliases": lambda r: refuse_connection(r) if next(away) else httpx.Response(200, json=NONE)}
    )
    result = run(server, "watch", "--json", "--every", "5")
    assert result.exit_code == 0
    assert [json.loads(line)["health"]["stable"] for line in result.stdout.splitlines()] == ["v2", "v2"]
    assert "Cannot reach" in result.stderr
    assert naps == [5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("plaudit pro", ["promote"]),
        ("plaudit promote v", ["v3", "v2"]),
        ("plaudit replicas drain eng", ["engine-1"]),
        ("plaudit runs show ru", ["run_1"]),
        ("plaudit rollouts abort ", ["rollout_1"]),
        ("plaudit rollouts start v2 --guardrail-u", ["--guardrail-users"]),
    ],
)
def test_shells_complete_commands_options_and_names(words: str, offered: list[str]) -> None:
    session = Session(transport=httpx.MockTransport(Server()), clock=h.FakeClock())
    asked = {"_PLAUDIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    result = CliRunner().invoke(app, [], prog_name="plaudit", obj=session, env=asked)
    assert result.stdout.split() == offered


def test_completion_offers_nothing_where_the_server_is_away() -> None:
    session = Session(transport=httpx.MockTransport(refuse_connection), clock=h.FakeClock())
    asked = {"_PLAUDIT_COMPLETE": "complete_bash", "COMP_WORDS": "plaudit promote v", "COMP_CWORD": "2"}
    result = CliRunner().invoke(app, [], prog_name="plaudit", obj=session, env=asked)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def test_the_names_of_guardrails_are_those_of_the_contract() -> None:
    assert get_args(GuardrailName) == GUARDRAILS


def test_the_roles_are_those_of_the_contract() -> None:
    assert tuple(RoleName) == get_args(Role)


@pytest.mark.parametrize(
    ("server", "args", "code", "line"),
    [
        (refuse_connection, ["versions"], 3, r"plaudit: Cannot reach http://127\.0\.0\.1:8000/v1/versions .*"),
        (Server(), ["versions", "show", "v9"], 1, r"plaudit: no /v1/versions/v9 \[request req-7\]"),
        (Server(), ["rate", "nonsense", "up"], 2, r"plaudit: response_id: .*"),
        (Server(), ["--url", "nowhere", "versions"], 2, r"plaudit: 'nowhere' is not a server's address.*"),
        (Server(**{"GET /v1/versions": httpx.Response(200, text="<html>")}), ["versions"], 1, r"plaudit: GET .*"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(server: Any, args: list[str], code: int, line: str) -> None:
    result = run(server, *args)
    assert result.exit_code == code
    assert re.fullmatch(line, result.stderr.rstrip("\n"))
    assert result.stdout == ""


def test_a_wrong_command_is_a_usage_error() -> None:
    assert run(Server(), "versions", "shwo").exit_code == 2
    assert run(Server(), "rate", h.ANSWER_ID, "sideways").exit_code == 2


def test_help_is_quick_and_needs_no_server() -> None:
    code = "import sys; sys.argv = ['plaudit', '--version']; from plaudit.cli import app; app()"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == __version__


def doctor(server: Any, *options: str) -> dict[str, dict[str, Any]]:
    """The doctor's findings by name."""
    result = run(server, "doctor", "--json", *options)
    checks = json.loads(result.stdout)
    assert result.exit_code == int(any(check["ok"] is False for check in checks))
    return {check["name"]: check for check in checks}


def test_the_doctor_finds_a_healthy_server_healthy(tmp_path: Path) -> None:
    found = doctor(Server())
    assert [name for name, check in found.items() if not check["ok"]] == []
    asked = {"server", "releases", "clock", "key", "engine", "stable version", "trainer", "data folder", "disk"}
    assert set(found) == asked | {"chat", "vote", "store"}
    assert set(doctor(Server(), "--read-only")) == asked
    assert "v2, proven" in found["stable version"]["detail"]
    assert "ops (from" in found["key"]["detail"]
    assert "admin" in found["key"]["detail"]
    assert set(found["chat"]["figures"]) == {"seconds", "first_token_seconds"}
    assert abs(found["clock"]["figures"]["skew_seconds"]) < 1
    lines = run(Server(), "doctor").stdout.splitlines()
    assert lines[0].startswith("ok    server: http://127.0.0.1:8000")


def late(request: httpx.Request) -> httpx.Response:
    """A server whose clock is an hour behind."""
    return healthy(request, now=(datetime.now(UTC) - timedelta(hours=1)).isoformat())


def mute(_: httpx.Request) -> httpx.Response:
    """An answer without a word."""
    return h.streamed(h.sse(h.chunk_json(finish="stop")))


READY = {"replica": "r0", "state": "ready"}


@pytest.mark.parametrize(
    ("routes", "name", "ok"),
    [
        ({"GET /v1/keys/self": h.refusal(401)}, "key", False),
        ({"GET /v1/keys/self": h.refusal(404)}, "key", None),
        ({"GET /healthz": late}, "clock", False),
        ({"GET /healthz": HEALTH}, "clock", None),
        ({"GET /readyz": HEALTH | {"replicas": [READY, READY | {"state": "down"}]}}, "engine", False),
        ({"GET /readyz": HEALTH | {"replicas": [READY, READY | {"state": "starting"}]}}, "engine", None),
        ({"POST /v1/chat/completions": h.refusal(502)}, "chat", False),
        ({"POST /v1/chat/completions": h.refusal(502)}, "vote", None),
        ({"POST /v1/chat/completions": h.refusal(403)}, "chat", None),
        ({"POST /v1/chat/completions": mute}, "chat", False),
        ({"POST /v1/feedback": h.refusal(507)}, "vote", False),
        ({"POST /v1/feedback": h.refusal(507)}, "store", None),
        ({"POST /v1/feedback": h.refusal(403)}, "vote", None),
        ({"POST /v1/feedback": h.feedback_json()}, "vote", False),  # it does not let go of it
        ({"GET /v1/feedback/fb_1": h.feedback_json()}, "store", False),
        ({"GET /v1/feedback/fb_1": h.refusal(404)}, "store", False),
        ({"GET /v1/feedback/fb_1": h.refusal(403)}, "store", None),
        ({f"DELETE /v1/chat/completions/{h.ANSWER_ID}": h.refusal(403)}, "chat", True),
        ({"GET /readyz": httpx.Response(503, json=HEALTH | {"engine": "down"})}, "engine", False),
        ({"GET /readyz": HEALTH | {"fake_engine": True}}, "engine", False),
        ({"GET /readyz": HEALTH | {"stable": "base"}}, "stable version", True),
        ({"GET /readyz": HEALTH | {"stable": None}}, "stable version", False),
        ({"GET /v1/versions/v2": V2 | {"proof": None}}, "stable version", False),
        ({"GET /v1/versions/v2": V2 | {"tainted": True}}, "stable version", False),
        ({"GET /v1/versions/v2": h.refusal(403)}, "stable version", None),
        ({"GET /healthz": UNSEEN, "GET /v1/training/runs": h.page_json([])}, "trainer", None),
        ({"GET /healthz": UNSEEN}, "trainer", False),  # a run goes on, but its last word is old
        ({"GET /healthz": HEALTH | {"release": "99.0.0"}}, "releases", False),
    ],
)
def test_the_doctor_finds_what_is_wrong_and_names_the_mend(routes: dict[str, Any], name: str, ok: bool | None) -> None:
    check = doctor(Server(**routes))[name]
    assert check["ok"] is ok
    assert check["detail"]
    assert ok or check["mend"]


def test_the_doctor_leaves_nothing_behind() -> None:
    server = Server()
    doctor(server)
    (asked,) = server.sent("/v1/chat/completions")
    assert asked["train"] is False
    up, back = server.sent("/v1/feedback")
    assert (up["value"], back["value"]) == (1.0, None)
    assert {up["key"], back["key"]} == {"doctor"}
    erased = [request.url.path for request in server.requests if request.method == "DELETE"]
    assert erased == ["/v1/feedback/fb_1", f"/v1/chat/completions/{h.ANSWER_ID}"]
    read_only = Server()
    doctor(read_only, "--read-only")
    assert {request.method for request in read_only.requests} == {"GET"}


def test_the_doctor_says_when_an_answer_stays() -> None:
    kept = doctor(Server(**{f"DELETE /v1/chat/completions/{h.ANSWER_ID}": h.refusal(403)}))
    assert "it stays" in kept["chat"]["detail"]
    assert "it stays" not in doctor(Server())["chat"]["detail"]


def test_the_doctor_without_a_server_checks_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor(refuse_connection)
    assert found["server"]["ok"] is False
    assert found["data folder"]["ok"] is True
    monkeypatch.setenv("PLAUDIT_DATA", "no/such/folder")
    assert doctor(refuse_connection)["data folder"]["ok"] is None


def test_the_doctor_finds_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.cli.doctor.FREE_BYTES_NEEDED", 1 << 60)
    assert doctor(Server())["disk"]["ok"] is False


def test_a_rollout_is_shown_with_its_verdict() -> None:
    shown = run(Server(), "rollouts", "show").stdout
    assert re.search(r"^candidate +v2 against v1$", shown, re.MULTILINE)
    assert re.search(r"^share +20 % \(step 1 of 2\)$", shown, re.MULTILINE)
    assert re.search(r"^verdict +Hold: 60 of 100 raters on v2", shown, re.MULTILINE)
    assert re.search(r"^difference +\+1\.0 points, at least -9\.0$", shown, re.MULTILINE)
    assert re.search(r"^canary +v2 +80 +60 +48 +12 +80 % *$", shown, re.MULTILINE)
    assert re.search(r"^errors +ok +0\.01 +0\.02 +0\.02 +400 and 80 *$", shown, re.MULTILINE)


def test_a_rollout_is_begun_with_its_steps() -> None:
    server = Server()
    run(server, "rollouts", "start", "v2", "--step", "0.1:60", "--step", "0.5", "--auto-promote")
    (sent,) = server.sent("/v1/rollouts")
    assert [(step["weight"], step.get("min_seconds")) for step in sent["steps"]] == [(0.1, 60), (0.5, None)]
    assert (sent["candidate"], sent["auto_promote"], sent["auto_rollback"]) == ("v2", True, True)
    bad = run(server, "rollouts", "start", "v2", "--step", "half")
    assert (bad.exit_code, "'half' is no step" in bad.stderr) == (2, True)


def test_a_verb_goes_to_the_newest_rollout_or_to_the_one_that_is_named() -> None:
    server = Server()
    assert "aborted" in run(server, "rollouts", "abort", "--reason", "no use").stdout
    run(server, "rollouts", "abort", "rollout_1")
    assert server.sent("/v1/rollouts/rollout_1/abort") == [{"reason": "no use"}, {}]
    none = run(Server(**{"GET /v1/rollouts": h.page_json([])}), "rollouts", "abort")
    assert (none.exit_code, "no rollout yet" in none.stderr) == (2, True)
