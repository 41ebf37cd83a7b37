"""Both clients and the command line against the real app on a real socket, with the fake engine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from plaudit import AsyncPlaudit, ConflictError, NotFoundError, PermissionDeniedError, Plaudit, PreconditionFailedError
from plaudit.cli import app as command
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit.wire.versions import GateReport
from tests.support import server as support


def talk_and_rate(url: str, key: str) -> None:
    """A user's part of the loop, blocking."""
    with Plaudit(url, key) as client:
        answer = client.chat.create("Say hello.", user="ada", train=True, metadata={"page": "1"})
        assert (answer.version, answer.arm) == ("base", "stable")
        with client.chat.stream("Say hello.", user="ada", train=True) as stream:
            spoken = "".join(chunk.text for chunk in stream)
        assert spoken == stream.text != ""
        assert stream.version == "base"
        assert stream.response_id is not None
        kept = client.feedback.rate(answer.response_id, "up", comment="fine", end_user="ada")
        assert (kept.value, kept.revision, kept.status) == (1.0, 1, "created")
        assert client.feedback.rate(answer.response_id, None, end_user="ada").retracted
        assert client.feedback.get(kept.id).revision == 2
        compared = client.comparisons.create(answer.response_id, stream.response_id, end_user="ada")
        assert (compared.chosen, compared.rejected) == (answer.response_id, stream.response_id)
        assert client.events.create(answer.response_id, "copy").type == "copy"
        results = client.feedback.batch([{"response_id": stream.response_id, "value": "down"}, {"value": 3}]).results
        assert [result.status for result in results] == [201, 422]
        assert client.completions.get(answer.response_id).metadata == {"page": "1"}
        assert [row.id for row in client.completions.iterate(limit=1)] == [stream.response_id, answer.response_id]
        assert [row.id for row in client.completions.list(metadata={"page": "1"}).data] == [answer.response_id]
        made = client.feedback.token(stream.response_id, keys=["helpful"], expires_in=60)
        given = {answer.feedback_token: "thumb", stream.feedback_token: "thumb", made.token: "helpful"}
        for token, rated in given.items():
            voted = httpx.post(f"{url}/v1/feedback/t/{token}", json={"value": True, "key": rated}, trust_env=False)
            assert voted.is_success
            assert voted.json()["end_user"] == kept.end_user
        with pytest.raises(NotFoundError):
            client.feedback.rate("chatcmpl-01890a5d-ac96-774b-bcce-b302099a8057", "up")


def administer(url: str, key: str) -> None:
    """Keys, blocking."""
    with Plaudit(url, key) as client:
        made = client.keys.create("app", ["chat"])
        with Plaudit(url, made.secret) as limited, pytest.raises(PermissionDeniedError):
            limited.versions.list()
        assert client.keys.revoke(made.id).revoked_at is not None
        assert "key.created" in {entry.action for entry in client.audit.iterate(limit=1)}


async def test_a_user_through_the_blocking_client(tmp_path: Path) -> None:
    async with support.serving(tmp_path) as harness, support.listening(harness.app) as url:
        key = (harness.settings.data / "admin.key").read_text().strip()
        await asyncio.to_thread(talk_and_rate, url, key)
        await asyncio.to_thread(administer, url, key)


async def test_a_comparison_that_the_server_asks_for(tmp_path: Path) -> None:
    async with support.serving(tmp_path, compare_share=1) as harness, support.listening(harness.app) as url:
        key = (harness.settings.data / "admin.key").read_text().strip()
        async with AsyncPlaudit(url, key) as client:
            answer = await client.chat.create("Say hello.", user="ada")
            assert answer.compare_with == "policy"
            async with await client.chat.stream("Say hello.", user="ada", model=answer.compare_with) as other:
                assert [chunk.text async for chunk in other]
            assert other.compare_with == "policy"
            assert other.response_id is not None
            await client.comparisons.create(answer.response_id, other.response_id, end_user="ada")
            assert (await client.chat.create("Say hello.", store=False)).compare_with is None


async def test_a_trainer_and_an_operator_through_the_async_client(tmp_path: Path) -> None:
    async with support.serving(tmp_path) as harness, support.listening(harness.app) as url:
        key = (harness.settings.data / "admin.key").read_text().strip()
        async with AsyncPlaudit(url, key) as client:
            assert (await client.training.lease("w", min_records=4)).state == "insufficient_data"
            await harness.rated(4)
            batch = await client.training.lease("w", min_records=4, max_records=4)
            assert batch.id is not None
            run = await client.training.create_run(batch.id, "w", config={"lr": 1e-4})
            await client.training.update_run(run.id, stage="ppo", step=1, progress=0.5, metrics={"kl": 0.01})
            assert (await client.training.heartbeat(batch.id, "w")).state == "leased"
            drawn = await client.training.generate("base", [GeneratePrompt(messages=list(support.HELLO))], n=2)
            assert len(drawn.answers) == 2
            scored = await client.training.score("base", [TokenSequence(prompt_ids=[1, 2], response_ids=[3, 4])])
            assert [len(row) for row in scored.logprobs] == [2]
            name = await publish(client, harness, run.model_dump(), batch.model_dump())
            assert (await client.training.batch(batch.id)).state == "consumed"
            assert [point.metrics for point in (await client.training.metrics(run.id)).data] == [{"kl": 0.01}]
            await operate(client, name)


async def publish(client: AsyncPlaudit, harness: support.Harness, run: dict[str, Any], batch: dict[str, Any]) -> str:
    """Register a version and wait for its proof."""
    body = support.version_body(harness.settings, run, batch) | {"gate": GateReport(passed=True, checks=[])}
    registered = await client.versions.register(**body)
    proven = await client.versions.wait(registered.name, timeout=10, poll=0.05)
    assert proven.proof is not None
    return proven.name


async def operate(client: AsyncPlaudit, name: str) -> None:
    """Promote, roll back, and lose a race."""
    before = {alias.name: alias for alias in (await client.aliases.list()).data}["stable"]
    assert (await client.versions.promote(name, "proven")).version == name
    assert (await client.chat.create("Say hello.")).version == name
    with pytest.raises(PreconditionFailedError):
        await client.aliases.set("stable", "base", if_match=before.etag)
    assert (await client.rollback(reason="test")).version == "base"
    now = {alias.name: alias for alias in (await client.aliases.list()).data}["stable"]
    assert (await client.aliases.set("stable", name, if_match=now.etag)).version == name
    assert (await client.versions.lineage(name)).parents == ["base"]
    with pytest.raises((ConflictError, NotFoundError)):
        await client.versions.promote("v999")


async def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with support.serving(tmp_path) as harness, support.listening(harness.app) as url:
        monkeypatch.setenv("PLAUDIT_DATA", str(harness.settings.data))
        monkeypatch.delenv("PLAUDIT_API_KEY", raising=False)
        name = await harness.publish()

        async def run(*args: str) -> tuple[int, str]:
            result = await asyncio.to_thread(CliRunner().invoke, command, ["--url", url, *args])
            return result.exit_code, result.stdout

        code, said = await run("chat", "Say hello.", "--json")
        assert code == 0
        code, receipt = await run("rate", json.loads(said)["id"], "down", "--json")
        assert (code, json.loads(receipt)["value"]) == (0, -1.0)
        code, table = await run("versions")
        assert code == 0
        assert name in table
        assert (await run("promote", name))[1] == f"stable is {name}\n"
        assert (await run("rollback", "--yes"))[1] == "stable is base\n"
        assert (await run("runs"))[0] == 0
        assert (await run("keys"))[0] == 0
        code, checks = await run("doctor", "--json")
        found = {check["name"]: check["ok"] for check in json.loads(checks)}
        assert code == 1  # the fake engine is no engine
        assert [check for check, ok in found.items() if ok is False] == ["engine"]
