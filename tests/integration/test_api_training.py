"""The trainer's endpoints."""

from pathlib import Path
from typing import Any

import pytest

from plaudit.wire.training import Batch
from plaudit_trainer import batches
from plaudit_trainer.config import TrainerConfig
from tests.support.server import serving, version_body

LEASE = "/v1/batches:lease"


async def test_too_little_to_learn_from_says_what_is_missing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.rated(2)
        batch = (await server.admin.post(LEASE, json={"worker": "w", "min_records": 5})).json()
        assert (batch["state"], batch["id"], batch["available"], batch["needed"]) == ("insufficient_data", None, 2, 5)
        assert batch["reason"]


async def test_only_consented_votes_are_leased(tmp_path: Path) -> None:
    async with serving(tmp_path, consent_default="denied") as server:
        silent = await server.chat("one", user="a")
        granted = await server.chat("two", user="b", train=True)
        for answer, user in ((silent, "a"), (granted, "b")):
            await server.vote(answer["id"], True, end_user=user)
        batch = (await server.admin.post(LEASE, json={"worker": "w", "min_records": 1})).json()
        assert [record["response_id"] for record in batch["records"]] == [granted["id"]]


async def test_a_record_is_leased_once_and_given_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.rated(4)
        first = (await server.admin.post(LEASE, json={"worker": "a", "min_records": 4})).json()
        assert len(first["records"]) == 4
        second = (await server.admin.post(LEASE, json={"worker": "b", "min_records": 1})).json()
        assert second["state"] == "insufficient_data"
        batch = f"/v1/batches/{first['id']}"
        beat = await server.admin.post(f"{batch}:heartbeat", json={"worker": "a", "lease_seconds": 600})
        assert beat.json()["state"] == "leased"
        stolen = await server.admin.post(f"{batch}:heartbeat", json={"worker": "b"})
        assert (stolen.status_code, stolen.json()["error"]["code"]) == (409, "lease_lost")
        failed = await server.admin.post(f"{batch}:fail", json={"worker": "a", "reason": "out of memory"})
        assert failed.json()["state"] == "released"
        third = (await server.admin.post(LEASE, json={"worker": "b", "min_records": 1})).json()
        assert len(third["records"]) == 4
        acked = await server.admin.post(f"/v1/batches/{third['id']}:ack", json={"worker": "b", "reason": "test"})
        assert acked.json()["state"] == "consumed"
        assert (await server.admin.get(f"/v1/batches/{third['id']}")).json()["state"] == "consumed"
        fourth = (await server.admin.post(LEASE, json={"worker": "c", "min_records": 1})).json()
        assert fourth["state"] == "insufficient_data"


async def test_comparisons_carry_both_texts(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        first, second = await server.chat("same", seed=1, user="a"), await server.chat("same", seed=2, user="a")
        body = {"chosen": first["id"], "rejected": second["id"], "end_user": "a"}
        assert (await server.admin.post("/v1/comparisons", json=body)).status_code == 201
        await server.rated(1)
        batch = (await server.admin.post(LEASE, json={"worker": "w", "min_records": 1})).json()
        (comparison,) = batch["comparisons"]
        assert comparison["chosen_text"] == first["choices"][0]["message"]["content"]
        assert comparison["rejected_text"] == second["choices"][0]["message"]["content"]
        assert comparison["messages"] == [{"role": "user", "content": "same"}]


async def test_a_run_from_begin_to_registration(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        batch, run = await server.leased_run()
        assert (run["version"], run["parent"], run["state"]) == ("v1", "base", "running")
        same = await server.admin.post(
            "/v1/training/runs", json={"batch_id": batch["id"], "worker": f"worker-{server.workers}"}
        )
        assert same.json()["id"] == run["id"]
        path = f"/v1/training/runs/{run['id']}"
        for step in range(3):
            report = {"stage": "ppo", "step": step, "progress": step / 3, "metrics": {"reward": 0.1 * step}}
            assert (await server.admin.post(f"{path}/metrics", json=report)).status_code == 200
        now = (await server.admin.get(path)).json()
        assert (now["stage"], now["metrics"]["reward"]) == ("ppo", pytest.approx(0.2))
        points = (await server.admin.get(f"{path}/metrics")).json()["data"]
        assert [point["step"] for point in points] == [0, 1, 2]
        made = await server.admin.post("/v1/versions", json=version_body(server.settings, run, batch))
        assert made.status_code == 201
        assert (await server.admin.get(path)).json()["state"] == "published"
        assert (await server.admin.get(f"/v1/batches/{batch['id']}")).json()["version"] == "v1"
        listed = (await server.admin.get("/v1/training/runs", params={"state": "published"})).json()["data"]
        assert [each["id"] for each in listed] == [run["id"]]


@pytest.mark.parametrize("metrics", [{"reward": "high"}, {str(n): 0.0 for n in range(201)}])
async def test_bad_metrics(tmp_path: Path, metrics: dict[str, Any]) -> None:
    async with serving(tmp_path) as server:
        _, run = await server.leased_run()
        answer = await server.admin.post(f"/v1/training/runs/{run['id']}/metrics", json={"metrics": metrics})
        assert answer.status_code == 422


async def test_generate_and_score(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        prompts: list[Any] = [{"messages": [{"role": "user", "content": "hi"}]}, {"prompt_ids": [1, 2, 3]}]
        body = {"version": "base", "prompts": prompts, "n": 2, "sampling": {"max_tokens": 4}}
        answers = (await server.admin.post("/v1/training/generate", json=body)).json()
        assert [answer["prompt_index"] for answer in answers["answers"]] == [0, 0, 1, 1]
        assert answers["failed"] == 0
        first = answers["answers"][0]
        scoring = {
            "version": "base",
            "sequences": [{"prompt_ids": first["prompt_ids"], "response_ids": first["response_ids"]}],
        }
        scored = (await server.admin.post("/v1/training/score", json=scoring)).json()
        assert [len(one) for one in scored["logprobs"]] == [4]
        assert (await server.admin.get("/v1/chat/completions")).json()["data"] == []  # never logged as users' traffic


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": "v9", "prompts": [{"prompt_ids": [1]}]}, 404),
        ({"version": "base", "prompts": [{}]}, 422),
        ({"version": "base", "prompts": [{"prompt_ids": [1], "messages": []}]}, 422),
        ({"version": "base", "prompts": []}, 422),
    ],
)
async def test_bad_prompts(tmp_path: Path, body: dict[str, Any], status: int) -> None:
    async with serving(tmp_path) as server:
        assert (await server.admin.post("/v1/training/generate", json=body)).status_code == status


async def test_the_trainer_waits_for_the_engine(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.engine.crash()
        body = {"version": "base", "prompts": [{"prompt_ids": [1]}]}
        answer = await server.admin.post("/v1/training/generate", json=body)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


CONSTRAINED = [
    {"logit_bias": {"5": 3}},
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"allowed_token_ids": [1, 2, 3]},
    {"bad_words": ["no"]},
    {"temperature": 0},
    {"top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.1},
    {"repetition_penalty": 1.2},
    {"presence_penalty": 0.5},
    {"min_tokens": 4},
]


@pytest.mark.parametrize("fields", CONSTRAINED, ids=lambda fields: next(iter(fields)))
async def test_answers_not_drawn_from_the_plain_distribution_enter_no_ratio(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    """What the server says of such an answer must make the trainer drop it as a trajectory, and keep its vote."""
    async with serving(tmp_path) as server:
        plain = await server.chat("one", user="a", temperature=0.7, stop=["\n\n\n"])
        ruled = await server.chat("two", user="b", **fields)
        for answer, user in ((plain, "a"), (ruled, "b")):
            assert (await server.vote(answer["id"], user == "a", end_user=user)).is_success
        leased = (await server.admin.post(LEASE, json={"worker": "w", "min_records": 1, "max_prompts": 4})).json()
    batch = batches.build(
        Batch.model_validate(leased), lambda _, text: ([1], [2]), TrainerConfig(min_examples=2, max_young_share=1)
    )
    assert [t.temperature for t in batch.trajectories] == [0.7]
    assert batch.trajectories[0].has_stops
    assert len(batch.singles) == 2 and batch.reason is None
    assert sum(n for reason, n in batch.dropped.items() if reason.startswith("trajectory_")) == 1


async def test_regenerations_raters_and_log_prompts_reach_the_trainer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        old, new = await server.chat("same", seed=1, user="a"), await server.chat("same", seed=2, user="a")
        await server.chat("of somebody else", user="b")
        event = {"response_id": old["id"], "type": "regenerate", "new_response_id": new["id"], "end_user": "a"}
        assert (await server.admin.post("/v1/events", json=event)).status_code == 201
        leased = (await server.admin.post(LEASE, json={"worker": "w", "min_records": 1, "max_prompts": 4})).json()
    (pair,) = leased["comparisons"]
    assert (pair["source"], pair["chosen_id"], pair["rejected_id"]) == ("regeneration", new["id"], old["id"])
    assert pair["rater_since"] is not None and leased["leased_at"] >= pair["rater_since"]
    assert leased["prompts"] == [[{"role": "user", "content": "of somebody else"}]]
    made = batches.build(Batch.model_validate(leased), lambda _, text: ([1], [2]), TrainerConfig(max_young_share=1))
    assert [p.source for p in made.pairs] == ["regeneration"]
