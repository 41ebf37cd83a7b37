"""The engine's life on real vLLM: it dies and comes back with what it had; its owner dies and it goes too."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from plaudit_server.engine.keeper import ChildKeeper
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.swap import Replica
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.errors import EngineRefused
from plaudit_server.settings import Settings
from tests.support.engine_faults import Case
from tests.support.streams import all_chunks, each_chunk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


class Host:
    """A process that owns an engine."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.state_file = folder / "state.json"
        command = [sys.executable, "-m", "tests.support.engine_host", str(folder), arguments[0], str(self.state_file)]
        self.process = subprocess.Popen([*command, *arguments[1:]], cwd=Path(__file__).parents[3])

    def state(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.state_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {"state": "starting", "resident": [], "restarts": 0}

    async def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not condition(self.state()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.state()
            await asyncio.sleep(0.05)
        return self.state()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[str]:
    return [" ".join(p.cmdline())[:60] for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def test_it_comes_back_with_what_it_had_and_goes_with_its_owner(
    case: Case, base_model: Path, tmp_path: Path
) -> None:
    v1 = case.parent.ref
    host = Host(tmp_path, str(base_model), v1.location, v1.parent, v1.manifest_sha256)
    try:
        await host.until(lambda s: "v1" in s["resident"], 240)
        core = next(p for p in host.family() if "EngineCore" in " ".join(p.cmdline()))
        core.kill()
        await host.until(lambda s: s["state"] == "down", 20)
        seen = await host.until(lambda s: s["state"] == "ready", 240)
        assert seen["resident"] == ["base", "v1"], "put back and proven before it was ready"
        assert seen["restarts"] == 1

        family = host.family()
        assert len(alive(family)) >= 4, "lifeline, API server, engine core, worker"
        os.kill(host.process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
        assert alive(family) == []
    finally:
        host.process.kill()
        host.process.wait()


@pytest.mark.asyncio(loop_scope="session")
async def test_chat_streams_and_a_closed_stream_aborts(case: Case) -> None:
    """Everything about chatting that only real vLLM can show."""
    client = case.bench.client
    messages: Any = [{"role": "user", "content": "Count from one to a thousand, in words, with commas."}]
    ask: Any = {"messages": messages, "max_tokens": 24, "seed": 7, "n": 2, "stop": ["zebra"]}

    answer, trace = await client.chat(ask, model="base", version="base", request_id="whole")
    assert "token_ids" not in json.dumps(answer) and answer["id"] == "chatcmpl-whole"
    for choice in trace.choices.values():
        assert choice.logprobs is not None and len(choice.logprobs) == len(choice.response_ids) > 0
    assert trace.usage is not None
    assert trace.usage["completion_tokens"] == sum(len(c.response_ids) for c in trace.choices.values())

    stream = await client.chat_stream(ask, model="base", version="base", request_id="s", on_close=lambda: None)
    text = ["", ""]
    for chunk in await all_chunks(stream):
        for choice in chunk["choices"]:
            text[choice["index"]] += choice["delta"].get("content") or ""
    assert [stream.trace.choices[i].text for i in range(2)] == text
    rewriter = stream._rewriter
    assert rewriter is not None and rewriter.cut > rewriter.parsed, "this vLLM writes chunks in a layout we know"
    assert stream.trace.choices[0].response_ids == trace.choices[0].response_ids, "the same seed"
    assert stream.trace.prompt_ids == trace.prompt_ids

    with pytest.raises(EngineRefused, match="maximum context length") as refused:
        long = {"messages": [{"role": "user", "content": "word " * 5000}]}
        await client.chat(long, model="base", version="base", request_id="long")
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(EngineRefused, match=r"maximum context length|max_model_len"):
        await client.chat(ask | {"max_tokens": 999_999}, model="base", version="base", request_id="long")

    stream = await client.chat_stream(
        {"messages": messages, "max_tokens": 1500, "ignore_eos": True},
        model="base",
        version="base",
        request_id="abandoned",
        on_close=lambda: None,
    )
    async for _ in each_chunk(stream):
        break
    await stream.aclose()
    for _ in range(50):
        await asyncio.sleep(0.1)
        if await _running(client) == 0:
            return
    raise AssertionError("closing the stream did not abort the generation")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_seed_means_the_same_however_its_prompt_is_read(case: Case) -> None:
    """Prompts that do not fit into one step together are read in parts, which on a CPU ended vLLM 0.32's engine."""
    client = case.bench.client

    def body(number: int) -> Any:
        digits = " ".join(str((7 * number + place * place) % 9) for place in range(200))
        messages = [{"role": "user", "content": f"What comes next? {digits}"}]
        return {"messages": messages, "max_tokens": 16, "seed": number, "ignore_eos": True}

    async def drawn(number: int) -> list[int]:
        _, trace = await client.chat(body(number), model="base", version="base", request_id=f"seeded-{number}")
        return trace.choices[0].response_ids

    alone = [await drawn(number) for number in range(4)]
    together = await asyncio.gather(*(drawn(number) for number in range(4)))
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > 1


async def _running(client: ReplicaClient) -> float:
    wire = client._wire._wire  # past the list of what may be asked: metrics are not on it
    metrics = (await wire.send("GET", "/metrics", None, {}, limit_s=10)).content.decode()
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_a_model_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    replica = Replica("engine-0")

    async def never(_: Replica) -> None:
        raise AssertionError("it must not come up")

    keeper = ChildKeeper(replica, Settings(data=tmp_path), tmp_path / "no-such-model", never, never)

    assert await keeper._one_life() is False
    assert replica.state == "down" and replica.detail is not None and "\n" not in replica.detail
    assert "no-such-model" in replica.detail and "engine.log" in replica.detail


async def test_closing_before_it_is_up_leaves_nothing(base_model: Path, tmp_path: Path) -> None:
    others = set(psutil.Process().children(recursive=True))  # the engine that the tests share, if it is up
    engine = VllmEngine(Settings(data=tmp_path), base_model)
    await engine.start()
    await asyncio.sleep(2)
    family = [p for p in psutil.Process().children(recursive=True) if p not in others]
    assert any("engine.sock" in " ".join(p.cmdline()) for p in family)

    await engine.close()

    assert alive(family) == []
