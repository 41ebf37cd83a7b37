"""Rollouts through the API: begun, judged by seeded votes, ended by themselves or by a person."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from plaudit_server.engine.fake import FakeEngine
from plaudit_server.rollouts import Rollouts
from plaudit_server.serving import Serving
from plaudit_server.telemetry import Telemetry
from tests.support.rollout_rows import Crowd
from tests.support.server import HELLO, Harness, serving

QUIET = {"rollout_tick_s": 3600}
"""Tests tick themselves."""

GOOD: dict[str, Any] = {"stable": (35, 35), "canary": (70, 0)}
BAD: dict[str, Any] = {"stable": (20, 0), "canary": (0, 20)}
OFF = {"errors": None, "ttft": None, "length": None, "refusals": None}
AT_ONCE = [{"weight": 0.5, "min_seconds": 0}]


async def begin(server: Harness, candidate: str = "v1", **changes: Any) -> dict[str, Any]:
    body = {"candidate": candidate, "steps": AT_ONCE, "guardrails": OFF, "min_raters": 60} | changes
    made = await server.admin.post("/v1/rollouts", json=body)
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


async def look(server: Harness, rollout: dict[str, Any]) -> dict[str, Any]:
    answer = await server.admin.get(f"/v1/rollouts/{rollout['id']}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def do(server: Harness, rollout: dict[str, Any], verb: str, **body: Any) -> httpx.Response:
    return await server.admin.post(f"/v1/rollouts/{rollout['id']}/{verb}", json=body)


async def points(server: Harness) -> dict[str, str]:
    return {a["name"]: a["version"] for a in (await server.admin.get("/v1/aliases")).json()["data"]}


async def actions(server: Harness) -> list[tuple[str, str]]:
    entries = (await server.admin.get("/v1/audit?limit=100")).json()["data"]
    return [(e["actor"], e["action"]) for e in entries]


async def arms(server: Harness, users: int, prefix: str = "someone") -> dict[str, tuple[str, str]]:
    """Arm and version that each user gets, by what the answer says."""
    found = {}
    for number in range(users):
        body = {"messages": HELLO, "user": f"{prefix}-{number}"}
        answer = await server.admin.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        found[body["user"]] = (answer.headers["x-rollout-arm"], answer.headers["x-model-version"])
    return found


async def test_a_good_candidate_is_promoted_by_itself_where_that_is_allowed(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, auto_promote=True)
        assert (rollout["state"], rollout["stable"], rollout["weight"]) == ("running", "base", 0.5)
        assert (await points(server))["canary"] == "v1"
        await Crowd(server.services.database).visit(**GOOD)
        report = (await look(server, rollout))["report"]
        assert (report["decision"], report["automatic"], report["canary"]["raters"]) == ("promote", True, 70)
        assert report["difference_low"] > -0.05
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], ended["weight"]) == ("promoted", 0.0)
        assert "v1 100 % up of 70 raters, base 50 % up of 70 raters" in ended["reason"]
        assert await points(server) == {"stable": "v1", "previous": "base", "canary": "v1"}
        assert (await server.chat())["model"] == "policy@v1"
        assert {("rollout", "rollout.promote"), ("rollout", "promote"), ("admin", "rollout.start")} <= set(
            await actions(server)
        )


async def test_a_bad_candidate_is_rolled_back_by_itself_and_nobody_sees_it_again(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server)
        await Crowd(server.services.database).visit(**BAD)
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert ended["state"] == "rolled_back"
        assert "20 of 20 down-votes fell on it" in ended["reason"]
        assert ended["report"]["e_value"] >= 20
        assert await points(server) == {"stable": "base", "canary": "base"}
        assert set((await arms(server, 12)).values()) == {("stable", "base")}
        assert ("rollout", "rollout.rollback") in await actions(server)
        assert (await do(server, rollout, "promote")).status_code == 409
        again = await begin(server)
        assert again["report"]["canary"]["raters"] == 0


async def test_the_background_looks_by_itself(tmp_path: Path) -> None:
    async with serving(tmp_path, rollout_tick_s=0.05) as server:
        await server.publish()
        rollout = await begin(server)
        await Crowd(server.services.database).visit(**BAD)

        async def is_over() -> bool:
            return (await look(server, rollout))["state"] == "rolled_back"

        await server.until(is_over)
        metrics = (await server.admin.get("/metrics")).text
        assert 'plaudit_alias_moves_total{alias="canary",by="rollout"} 2.0' in metrics


async def test_without_auto_promote_a_person_promotes(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server)
        await Crowd(server.services.database).visit(**GOOD)
        await server.services.rollouts.tick()
        report = (await look(server, rollout))["report"]
        assert (report["decision"], report["automatic"]) == ("promote", False)
        assert "Waiting for a person" in report["words"]
        assert 'plaudit_rollout_raters{arm="canary"} 70.0' in (await server.admin.get("/metrics")).text
        promoted = await do(server, rollout, "promote", reason="I read fifty of them")
        assert (promoted.status_code, promoted.json()["state"]) == (200, "promoted")
        assert promoted.json()["reason"] == "I read fifty of them"
        assert (await points(server))["stable"] == "v1"
        assert ("admin", "rollout.promote") in await actions(server)


async def test_nothing_is_promoted_on_missing_data(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, auto_promote=True)
        await server.services.rollouts.tick()
        report = (await look(server, rollout))["report"]
        assert (report["decision"], report["difference"], report["canary"]["up_rate"]) == ("hold", None, None)
        assert "0 of 60 raters on v1" in report["words"]


async def test_answers_that_were_lost_hold(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, auto_promote=True)
        await Crowd(server.services.database).visit(**GOOD, silent=(60, 0))
        await server.services.rollouts.tick()
        held = await look(server, rollout)
        assert (held["state"], held["report"]["sample_ratio_ok"]) == ("running", False)
        assert "users do not fall on the arms by the weights (70 of 200 on v1" in held["report"]["words"]


@pytest.mark.parametrize(
    ("bound", "broken", "says"),
    [
        ({"errors": 0.02}, {"status": "failed"}, "failed answers: 100.0 % on v1, 0.0 % on base (25 and 25 users)"),
        ({"ttft": 1.25}, {"ttft_ms": 900.0}, "time to the first token: 900 ms on v1, 200 ms on base"),
        ({"length": 1.5}, {"completion_tokens": 400}, "length: 400 tokens on v1, 90 tokens on base"),
        ({"refusals": 0.05}, {"refused": True}, "refusals: 100.0 % on v1, 0.0 % on base"),
    ],
)
async def test_a_guardrail_fires(tmp_path: Path, bound: Any, broken: Any, says: str) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, guardrails=OFF | bound | {"min_users": 20})
        await Crowd(server.services.database).visit(silent=(25, 25), on_canary=broken)
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], says in ended["reason"]) == ("rolled_back", True), ended["reason"]


async def test_an_engine_that_fails_on_the_canary_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, steps=[{"weight": 0.5, "min_seconds": 0}], guardrails=OFF | {"errors": 0.02})
        server.engine.fail_after_tokens = 0
        body = {"messages": HELLO, "user": "one"}
        assert (await server.admin.post("/v1/chat/completions", json=body)).status_code == 502
        server.engine.fail_after_tokens = None

        async def is_counted() -> bool:
            report = (await look(server, rollout))["report"]
            guard = next(g for g in report["guardrails"] if g["name"] == "errors")
            return 1.0 in (guard["stable"], guard["canary"])

        await server.until(is_counted)
        answers = (await server.admin.get("/v1/chat/completions?user=one")).json()["data"]
        assert [answer["status"] for answer in answers] == ["failed"]


async def test_pause_resume_abort(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, auto_promote=True)
        before = await arms(server, 12)
        paused = await do(server, rollout, "pause", reason="lunch")
        assert (paused.status_code, paused.json()["state"], paused.json()["weight"]) == (200, "paused", 0.5)
        assert (await do(server, rollout, "pause")).status_code == 409
        assert await arms(server, 12) == before
        await Crowd(server.services.database).visit(**GOOD)
        await server.services.rollouts.tick()
        assert "paused (lunch)" in (await look(server, rollout))["report"]["words"]
        assert (await points(server))["stable"] == "base"
        assert (await do(server, rollout, "resume")).json()["report"]["decision"] == "promote"
        assert (await do(server, rollout, "resume")).status_code == 409
        aborted = await do(server, rollout, "abort")
        assert (aborted.json()["state"], aborted.json()["reason"]) == ("aborted", "aborted by admin")
        assert aborted.json()["report"]["canary"]["raters"] == 70
        assert set((await arms(server, 12)).values()) == {("stable", "base")}
        assert await points(server) == {"stable": "base", "canary": "base"}
        assert (await do(server, rollout, "abort")).status_code == 409
        assert [verb for _, verb in await actions(server) if verb.startswith("rollout.")] == [
            "rollout.abort",
            "rollout.resume",
            "rollout.pause",
            "rollout.start",
        ]


async def test_a_pause_stops_no_rollback(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server)
        await do(server, rollout, "pause")
        await Crowd(server.services.database).visit(**BAD)
        await server.services.rollouts.tick()
        assert (await look(server, rollout))["state"] == "rolled_back"


async def test_one_rollout_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        await server.publish()
        bodies = [{"candidate": name, "steps": AT_ONCE} for name in ("v1", "v2")]
        both = await asyncio.gather(*(server.admin.post("/v1/rollouts", json=body) for body in bodies))
        assert sorted(answer.status_code for answer in both) == [201, 409]
        refused = next(answer for answer in both if answer.status_code == 409)
        assert refused.json()["error"]["code"] == "rollout_under_way"
        begun = next(answer for answer in both if answer.status_code == 201).json()
        assert (await points(server))["canary"] == begun["candidate"]
        moved = await server.admin.put("/v1/aliases/canary", json={"version": "v2"}, headers={"If-Match": "*"})
        assert (moved.status_code, moved.json()["error"]["code"]) == (409, "rollout_under_way")
        listed = (await server.admin.get("/v1/rollouts")).json()
        assert [r["id"] for r in listed["data"]] == [begun["id"]]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"candidate": "v9"}, 404),
        ({"candidate": "base"}, 409),
        ({"steps": []}, 422),
        ({"steps": [{"weight": 1.0}]}, 422),
        ({"steps": [{"weight": 0.5}, {"weight": 0.2}]}, 422),
        ({"guardrails": {"latency": 1}}, 422),
        ({"min_raters": 0}, 422),
    ],
)
async def test_what_cannot_be_begun(tmp_path: Path, changes: Any, status: int) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        answer = await server.admin.post("/v1/rollouts", json={"candidate": "v1", "steps": AT_ONCE} | changes)
        assert answer.status_code == status, answer.text
        assert (await server.admin.get("/v1/rollouts")).json()["data"] == []
        assert "canary" not in await points(server)


async def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server)
        before = await arms(server, 12)
        await Crowd(server.services.database).visit(stable=(8, 0), canary=(0, 3))
    engine = FakeEngine()
    engine.install_s = 1.5
    async with serving(tmp_path, engine, **QUIET) as server:
        # Until the candidate is proven again its users are answered by stable, and are no sample of it.
        mine = next(who for who, found in before.items() if found == ("canary", "v1"))
        early = await server.admin.post("/v1/chat/completions", json={"messages": HELLO, "user": mine})
        assert (early.headers["x-rollout-arm"], early.headers["x-model-version"]) == ("stable", "base")
        assert (await look(server, rollout))["report"]["stable"]["exposed"] == 8 + list(before.values()).count(
            ("stable", "base")
        )
        await server.until(lambda: server.engine.is_ready("v1"))
        assert await arms(server, 12) == before
        await Crowd(server.services.database, came=100_000).visit(canary=(0, 17))
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], ended["report"]["canary"]["down"]) == ("rolled_back", 20)


async def test_users_stick_and_only_join_as_the_share_grows(tmp_path: Path) -> None:
    steps = [{"weight": weight, "min_seconds": 0} for weight in (0.1, 0.4, 0.8)]
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, steps=steps, min_raters=4)
        crowd = Crowd(server.services.database)
        # by the weights, as real users fall: a crowd beside them would be held as lost answers, by chance of the draw
        visits = [
            {"stable": (30, 6), "canary": (4, 0)},
            {"stable": (20, 4), "canary": (16, 0)},
            {"stable": (7, 1), "canary": (32, 0)},
        ]
        on_canary: list[set[str]] = []
        for step, seen in enumerate(visits):
            found = await arms(server, 40)
            assert found == await arms(server, 40)
            assert set(found.values()) <= {("canary", "v1"), ("stable", "base")}
            on_canary.append({who for who, (arm, _) in found.items() if arm == "canary"})
            assert (await look(server, rollout))["step"] == step
            await crowd.visit(**seen)
            await server.services.rollouts.tick()
        assert on_canary[0] < on_canary[1] < on_canary[2]
        shown = await look(server, rollout)
        assert [s["weight"] for s in shown["report"]["segments"]] == [0.1, 0.4, 0.8]
        # 40 users who asked in each segment count once, where they came first
        assert sum(s["canary"]["exposed"] + s["stable"]["exposed"] for s in shown["report"]["segments"]) == 40 + 3 * 40


async def test_a_late_vote_is_credited_to_the_version_and_the_segment_that_spoke(tmp_path: Path) -> None:
    steps = [{"weight": 0.5, "min_seconds": 0}, {"weight": 0.9, "min_seconds": 0}]
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, steps=steps, min_raters=1)
        ids = {}
        for number in range(20):
            who = f"late-{number}"
            answer = await server.admin.post("/v1/chat/completions", json={"messages": HELLO, "user": who})
            ids[who] = (answer.json()["id"], answer.headers["x-rollout-arm"])
        joins = next(i for i, arm in ids.values() if arm == "stable")
        # enough of them that the draw of the twenty never looks like answers that were lost
        await Crowd(server.services.database).visit(canary=(30, 0), stable=(30, 0))
        await server.services.rollouts.tick()
        assert (await look(server, rollout))["step"] == 1
        vote = await server.vote(joins, False)
        assert vote.json()["version"] == "base"
        first, second = (await look(server, rollout))["report"]["segments"]
        assert (first["stable"]["down"], second["stable"]["down"], second["canary"]["down"]) == (1, 0, 0)


async def test_one_vote_a_user_the_first_as_it_was_given(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, steps=[{"weight": 0.5, "min_seconds": 0}])

        async def ask(**fields: Any) -> str:
            found: str = (await server.chat(user="ann", **fields))["id"]
            return found

        pinned = await ask(model="policy@v1")
        await server.vote(pinned, False, end_user="ann")
        unrated, first, second = await ask(), await ask(), await ask()
        await server.vote(unrated, None, comment="hm", end_user="ann")
        await server.vote(first, False, end_user="ann")
        await server.vote(second, True, end_user="ann")
        await server.vote(second, True, end_user="bob")  # the same unit: Ann asked
        await server.vote(first, True, end_user="ann")  # changed her mind
        await server.vote(first, True, key="tone", end_user="ann")
        await server.vote(second, False, source="annotator", end_user="judge")
        report = (await look(server, rollout))["report"]
        seen = [report[arm][what] for arm in ("stable", "canary") for what in ("up", "down", "exposed")]
        assert sorted(seen) == [0, 0, 0, 0, 1, 1]
        assert report["stable"]["down"] + report["canary"]["down"] == 1


async def test_a_person_who_moves_stable_is_never_overruled(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        await server.publish()
        rollout = await begin(server, "v1")
        await Crowd(server.services.database).visit(**BAD)
        assert (await server.admin.post("/v1/versions/v2/promote")).status_code == 200
        # in force at once, before any tick
        assert set((await arms(server, 12)).values()) == {("stable", "v2")}
        refused = await do(server, rollout, "promote")
        assert (refused.status_code, refused.json()["error"]["code"]) == (412, "etag_mismatch")
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], "admin moved stable (now v2)" in ended["reason"]) == ("aborted", True)
        assert await points(server) == {"stable": "v2", "previous": "base", "canary": "v2"}


async def test_a_person_who_promotes_the_candidate_past_its_bad_votes_is_not_rolled_back(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, "v1")
        await Crowd(server.services.database).visit(**BAD)
        assert (await server.admin.post("/v1/versions/v1/promote")).status_code == 200
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], ended["reason"]) == ("promoted", "admin made v1 stable.")
        assert (await points(server))["stable"] == "v1"


async def test_several_processes_act_once(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server)
        database, engine = server.services.database, server.engine
        others = [Serving(database, engine, Telemetry(), max_resident=4, auto_promote=False) for _ in range(3)]
        ticking = [Rollouts(database, each, Telemetry(), tick_s=3600) for each in others]
        await Crowd(database).visit(**BAD)
        await asyncio.gather(server.services.rollouts.tick(), *(each.tick() for each in ticking))
        assert (await look(server, rollout))["state"] == "rolled_back"
        assert [verb for _, verb in await actions(server)].count("rollout.rollback") == 1


async def test_time_over(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, max_duration=0.05)
        await asyncio.sleep(0.1)
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], "0 of 60 raters on v1" in ended["reason"]) == ("expired", True)
        assert await points(server) == {"stable": "base", "canary": "base"}


async def test_roles(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server)
        viewer, chatter = await server.client("viewer"), await server.client("chat")
        path = f"/v1/rollouts/{rollout['id']}"
        assert [(await who.get(path)).status_code for who in (viewer, chatter)] == [200, 403]
        assert (await viewer.post(f"{path}/abort")).status_code == 403
        assert (await server.admin.get("/v1/rollouts/rollout_none")).status_code == 404


async def test_what_is_proven_meanwhile_does_not_take_the_place_of_what_is_compared_with(tmp_path: Path) -> None:
    async with serving(tmp_path, auto_promote=True, **QUIET) as server:
        await server.publish()

        async def serves() -> bool:
            return (await points(server))["stable"] == "v1"

        await server.until(serves)
        rollout = await begin(server, "base")  # the base model can be tried again
        await server.publish()
        assert (await points(server))["stable"] == "v1"
        assert (await look(server, rollout))["state"] == "running"


async def test_a_candidate_that_can_no_longer_be_proven_is_rolled_back(tmp_path: Path) -> None:
    async with serving(tmp_path, **QUIET) as server:
        await server.publish()
        rollout = await begin(server, auto_rollback=False)
    engine = FakeEngine()
    engine.unproven = {"v1"}
    async with serving(tmp_path, engine, **QUIET) as server:
        await server.until(lambda: server.state_is("v1", "failed"))
        await server.services.rollouts.tick()
        ended = await look(server, rollout)
        assert (ended["state"], "it is failed and may no longer serve" in ended["reason"]) == ("rolled_back", True)
        assert set((await arms(server, 6)).values()) == {("stable", "base")}
