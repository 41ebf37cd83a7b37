"""The whole loop on a model with an encoder: the real server, the real transformers worker, the real trainer.

Chat → votes → lease → reward model → PPO → publish → install with proof → promote → again from there → roll back. The
model is a tiny random T5: what it can learn is nothing to speak of, but every part is the one that is shipped.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from plaudit.wire.versions import Probe
from plaudit_server.app import create_app
from plaudit_server.engine.transformers_engine import NOTE
from plaudit_server.errors import SettingError
from plaudit_server.services import build_engine
from plaudit_server.settings import Settings
from plaudit_trainer import adapters
from plaudit_trainer.client import TrainerClient, connect
from plaudit_trainer.learner import learn
from plaudit_trainer.loop import Trainer, Turn
from plaudit_trainer.models import POLICY, Exchange
from plaudit_trainer.progress import Lines
from plaudit_trainer.state import TrainerState
from tests.support.server import listening, make_client, until
from tests.support.tiny_models import tiny_config
from tests.support.tiny_seq2seq import END, save_tiny_t5, seq2seq_backbone, tiny_t5

LENIENT: dict[str, Any] = {
    # The loop is under test, not what 48 votes can teach a random model.
    "reward_bar": 0.0,
    "gate_win_rate": 0.0,
    "gate_length_growth": 99,
    "gate_end_of_text_drop": 1,
    "gate_refusal_growth": 1,
    "gate_entropy_change": 99,
    "gate_disagreement_growth": 1e6,
    "kl_ceiling": 1e6,
    "max_weight_share": 0,
    "max_young_share": 1,
    "lr": 3e-3,
    "lora_layers": 0.5,
    "probe_min_tokens": 256,
}
CHATS = 40
PATIENCE = 400
"""Seconds. Starting the worker takes ten on an idle machine, all of it imports."""


class Loop:
    """A server on a real socket, and a trainer for it."""

    def __init__(self, app: Any, settings: Settings, base: Path, url: str) -> None:
        self.settings, self.base = settings, base
        self.engine = app.state.services.engine
        self.admin = make_client(app, (settings.data / "admin.key").read_text().strip())
        self.said: list[str] = []
        config = tiny_config(data=settings.data, min_records=16, max_records=64, **LENIENT)
        state = TrainerState(settings.data)
        state.prepare()
        self.link = link = connect(url, (settings.data / "trainer.key").read_text().strip(), self.said.append)
        self.trainer = Trainer(
            TrainerClient(link, state.worker(), lambda: None),
            config,
            base=base,
            learn=learn,
            display=Lines(self.said.append),
            check_stop=lambda: None,
        )

    async def chat(self, text: str, **fields: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 12} | fields
        answer = await self.admin.post("/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def rated_chats(self, start: int) -> None:
        """Answers are liked where they have many letters of the first half of the alphabet."""

        async def one(number: int) -> tuple[str, float, str]:
            user = f"user-{number % 20}"
            answer = await self.chat(f"question {number} please", user=user, train=True)
            text = answer["choices"][0]["message"]["content"]
            return answer["id"], sum(c in "abcdefghijklm" for c in text) / (len(text) + 1), user

        answers = await asyncio.gather(*(one(start + number) for number in range(CHATS)))
        median = sorted(share for _, share, _ in answers)[CHATS // 2]
        for response_id, share, user in answers:
            vote = {"response_id": response_id, "value": share >= median, "end_user": user}
            assert (await self.admin.post("/v1/feedback", json=vote)).is_success

    async def trained(self, name: str) -> dict[str, Any]:
        """One turn of the trainer's loop, and the version that came of it, proven or not."""
        assert await asyncio.to_thread(self.trainer.turn) is Turn.REGISTERED, self.said[-2:]
        await until(lambda: self._is_settled(name), seconds=PATIENCE)
        return await self.version(name)

    async def _is_settled(self, name: str) -> bool:
        return (await self.version(name))["state"] != "loading"

    async def version(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin.get(f"/v1/versions/{name}")).json()
        return found


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Loop]:
    base = save_tiny_t5(folder / "base", tiny_t5(flan=True))
    settings = Settings(
        data=folder / "data", model=str(base), consent_default="granted", engine_max_model_len=128, engine_max_loras=2
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app), listening(app) as url:
        loop = Loop(app, settings, base, url)
        await until(loop.engine.is_ready, seconds=PATIENCE)
        try:
            yield loop
        finally:
            loop.link.http.close()
            await loop.admin.aclose()


def trained_change(loop: Loop, name: str, exchanges: list[Exchange]) -> list[float]:
    """Log-probabilities under a published adapter, by the trainer's code from the bytes on disk."""
    backbone = seq2seq_backbone(tiny_t5(flan=True), cut=0)
    weights = adapters.read_weights(loop.settings.versions_folder / name / "adapter")
    adapters.write_into(backbone, POLICY, weights)
    with backbone.using(POLICY):
        rows = backbone.all_logprobs(backbone.encode(exchanges), [1.0] * len(exchanges))
    return [value for row in rows for value in row.tolist()]


@pytest.mark.timeout(1500)
async def test_the_loop_on_an_encoder_decoder_model(tmp_path: Path) -> None:
    async with running(tmp_path) as loop:
        health = (await loop.admin.get("/readyz")).json()
        assert [r["detail"] for r in health["replicas"]] == [NOTE]

        # A logged answer is what was read and drawn, end tokens and all.
        first = await loop.chat("hello", train=True, user="ada", seed=4, return_token_ids=True)
        assert first["model"] == "policy@base"
        assert first["prompt_token_ids"][-1] == END

        await loop.rated_chats(0)
        v1 = await loop.trained("v1")
        assert v1["state"] == "ready", (v1["reason"], v1["proof"], loop.said)
        (proof,) = v1["proof"]["replicas"]
        assert 0.98 < proof["low"] <= 1.0 <= proof["high"] < 1.02 or abs(proof["slope"] - 1) < 0.01
        assert proof["tensors_matched"] == proof["tensors_expected"] > 0
        assert v1["metrics"]["ppo/mean_change"] > 0

        promoted = await loop.admin.post("/v1/versions/v1/promote", json={"reason": "better"})
        assert promoted.status_code == 200, promoted.text
        assert (await loop.chat("hello"))["model"] == "policy@v1"
        await served_is_trained(loop, "v1")

        # The next run goes on from v1, and is proven against it.
        await loop.rated_chats(100)
        v2 = await loop.trained("v2")
        assert (v2["state"], v2["parent"]) == ("ready", "v1"), (v2["reason"], loop.said)
        probe = Probe.model_validate_json((loop.settings.versions_folder / "v2" / "probe.json").read_bytes())
        assert any(
            abs(a - b) > 1e-4 for s in probe.sequences for a, b in zip(s.parent_logprobs, s.new_logprobs, strict=True)
        )

        # A crash of the worker loses nothing: what served comes back with proof.
        lifeline = psutil.Process(loop.engine.fleet.keepers[0].pid)
        (worker,) = lifeline.children()
        os.kill(lifeline.pid, signal.SIGKILL)
        await until(lambda: not loop.engine.is_ready() and not worker.is_running(), seconds=PATIENCE)
        await until(lambda: loop.engine.is_ready("v1"), seconds=PATIENCE)
        assert (await loop.chat("hello"))["model"] == "policy@v1"

        rolled = await loop.admin.post("/v1/rollback", json={"reason": "worse after all"})
        assert rolled.json()["version"] == "base"
        assert (await loop.chat("hello"))["model"] == "policy@base"


async def served_is_trained(loop: Loop, name: str) -> None:
    """The trainer's own score endpoint, against the trainer's code."""
    exchanges = [Exchange((8, 9, 10, END), (11, 12, END)), Exchange((20, END), (21, 22, 23, 24))]
    sequences = [{"prompt_ids": e.prompt_ids, "response_ids": e.response_ids} for e in exchanges]
    answer = await loop.admin.post("/v1/training/score", json={"version": name, "sequences": sequences})
    served = [value for row in answer.json()["logprobs"] for value in row]
    assert served == pytest.approx(trained_change(loop, name, exchanges), abs=1e-3)
    base = await loop.admin.post("/v1/training/score", json={"version": "base", "sequences": sequences})
    assert served != pytest.approx([v for row in base.json()["logprobs"] for v in row], abs=1e-6)


def test_vllm_is_not_asked_for_what_it_cannot_serve(tmp_path: Path) -> None:
    base = save_tiny_t5(tmp_path / "base")
    with pytest.raises(SettingError, match="PLAUDIT_ENGINE") as caught:
        build_engine(Settings(data=tmp_path, model=str(base), engine="vllm"))
    assert "transformers" in caught.value.message


async def test_an_unreadable_model_is_said_in_health(tmp_path: Path) -> None:
    base = save_tiny_t5(tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"not weights")
    settings = Settings(data=tmp_path / "data", model=str(base))
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        engine = app.state.services.engine

        def says_why() -> bool:
            detail = engine.health()[0].detail or ""
            return "ended while starting" in detail and "Safetensor" in detail

        await until(says_why, seconds=PATIENCE)
