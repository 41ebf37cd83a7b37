"""Chat, vote, lease, register, prove, promote, roll back: the loop as HTTP sees it."""

from pathlib import Path

from tests.support.server import serving


async def test_the_loop(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        answer = await server.chat("What is the loop?", user="ada", train=True)
        assert answer["model"] == "policy@base"
        assert answer["system_fingerprint"] == "base"

        assert (await server.vote(answer["id"], "up", end_user="ada")).status_code == 201
        replaced = await server.vote(answer["id"], "down", end_user="ada")
        assert replaced.status_code == 200
        assert replaced.json()["revision"] == 2
        assert replaced.json()["version"] == "base"

        lease = {"worker": "w", "min_records": 1, "max_records": 8}
        batch = (await server.admin.post("/v1/batches:lease", json=lease)).json()
        (record,) = batch["records"]
        assert record["response_id"] == answer["id"]
        assert record["content"] == answer["choices"][0]["message"]["content"]
        assert len(record["response_ids"]) == len(record["logprobs"]) == answer["usage"]["completion_tokens"]
        assert [vote["value"] for vote in record["votes"]] == [-1.0]
        again = (await server.admin.post("/v1/batches:lease", json=lease)).json()
        assert (again["id"], again["resumed"]) == (batch["id"], True)

    async with serving(tmp_path) as server:  # everything acknowledged outlives a restart
        votes = (await server.admin.get("/v1/feedback", params={"response_id": answer["id"]})).json()["data"]
        assert [vote["value"] for vote in votes] == [-1.0]


async def test_a_version_is_proven_then_promoted_then_rolled_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        made = await server.register()
        assert (made["name"], made["state"]) == ("v1", "loading")
        await server.until(lambda: server.state_is("v1", "ready"))
        assert (await server.version("v1"))["proof"]["passed"] is True
        assert (await server.chat())["model"] == "policy@base"

        promoted = await server.admin.post("/v1/versions/v1/promote", json={"reason": "better"})
        assert promoted.status_code == 200, promoted.text
        answer = await server.chat()
        assert answer["model"] == "policy@v1"
        assert answer["system_fingerprint"] == f"v1-{made['manifest_sha256'][:8]}"

        rolled = await server.admin.post("/v1/rollback", json={"reason": "worse after all"})
        assert rolled.json()["version"] == "base"
        assert (await server.chat())["model"] == "policy@base"
        actions = [entry["action"] for entry in (await server.admin.get("/v1/audit")).json()["data"]]
        assert len(actions) >= 2

        lineage = (await server.admin.get("/v1/versions/v1/lineage")).json()
        assert lineage["parents"] == ["base"]
        assert lineage["feedback"]["records"] == 4
