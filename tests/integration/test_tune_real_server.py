"""A run without a batch, on the real server: an empty batch, any proven parent, and a version like any other."""

import asyncio
from pathlib import Path

import torch

from plaudit.wire.versions import GateReport
from plaudit_trainer import adapters
from plaudit_trainer.models import POLICY
from plaudit_trainer.tune.register import register
from plaudit_trainer.tune.result import REPORT, TuneReport
from tests.support.server import listening, serving, version_body
from tests.support.tiny_models import save_tiny_base, stir, tiny_backbone

RUNS = "/v1/training/runs"


async def test_a_run_without_a_batch_gets_an_empty_one_and_ends_in_a_version(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        begun = await server.admin.post(RUNS, json={"batch_id": None, "worker": "tune-1", "parent": "base"})
        assert begun.status_code == 201, begun.text
        run = begun.json()
        assert (run["version"], run["parent"], run["parent_location"], run["state"]) == ("v1", "base", None, "running")
        batch = (await server.admin.get(f"/v1/batches/{run['batch_id']}")).json()
        assert batch["state"] == "leased"
        body = version_body(server.settings, run, {"id": run["batch_id"]})
        made = await server.admin.post("/v1/versions", json=body)
        assert made.status_code == 201, made.text
        assert made.json()["records"] == 0
        assert (await server.admin.get(f"/v1/batches/{run['batch_id']}")).json()["state"] == "consumed"
        lineage = (await server.admin.get("/v1/versions/v1/lineage")).json()
        assert (lineage["parents"], lineage["feedback"]["records"]) == (["base"], 0)


async def test_its_parent_must_be_proven_and_is_stable_where_none_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        unknown = await server.admin.post(RUNS, json={"worker": "tune-1", "parent": "v9"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "version_not_found")
        assert (await server.admin.post(RUNS, json={"worker": "tune-1"})).json()["parent"] == "base"
        again = await server.admin.post(RUNS, json={"worker": "tune-1"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "holds_batch")


async def test_a_run_on_a_batch_names_no_parent(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        batch, run = await server.leased_run()
        body = {"batch_id": batch["id"], "worker": run.get("worker", "worker-1"), "parent": "base"}
        refused = await server.admin.post(RUNS, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "parent_given")


async def test_reward_model_and_critic_go_on_from_the_newest_version_that_learnt_from_votes(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        batch, run = await server.leased_run()
        learnt = version_body(server.settings, run, batch)
        assert (await server.admin.post("/v1/versions", json=learnt)).status_code == 201
        tuning = (await server.admin.post(RUNS, json={"worker": "tune-1", "parent": "base"})).json()
        body = version_body(server.settings, tuning, {"id": tuning["batch_id"]})
        assert (await server.admin.post("/v1/versions", json=body)).status_code == 201
        _, third = await server.leased_run()
        assert third["warm_start_location"] == learnt["location"]


async def test_a_tuned_adapter_is_registered_by_the_trainers_own_code_and_proven(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base, out = save_tiny_base(tmp_path / "base"), tmp_path / "out"
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    lora = adapters.save(backbone, POLICY, out / "adapter", "base")
    (out / "probe.json").write_text('{"sequences": []}', encoding="utf-8")
    report = TuneReport(
        kind="adapter",
        digest="d",
        base="base",
        base_fingerprint="f",
        settings={"epochs": 3.0, "lr": None},
        counts={},
        figures={},
        gate=GateReport(passed=True, checks=[]),
        lora=lora,
        metrics={"tune/bleu_after": 12.5},
    )
    (out / REPORT).write_text(report.model_dump_json(), encoding="utf-8")
    async with serving(tmp_path) as server, listening(server.app) as url:
        data = server.settings.data
        key = (data / "trainer.key").read_text(encoding="ascii").strip()
        name = await asyncio.to_thread(
            register, out, report, base=base, data=data, url=url, key=key, say=lambda line: None
        )
        await server.until(lambda: server.state_is(name, "ready"))
        version = await server.version(name)
        assert (version["parent"], version["metrics"]) == ("base", {"tune/bleu_after": 12.5})
        assert version["location"] == str((data / "versions" / name).resolve())
