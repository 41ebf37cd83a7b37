"""The transformers worker behind the server's own client, on tiny random models: with an encoder and without."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit_server.engine.hf.api import Worker
from plaudit_server.engine.hf.model import ServedModel
from plaudit_server.engine.hf.scheduler import Scheduler
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable
from plaudit_trainer import adapters
from plaudit_trainer.models import POLICY, Backbone, Exchange
from tests.support.streams import all_chunks, each_chunk
from tests.support.tiny_models import save_tiny_base, stir, tiny_backbone, tiny_gpt2
from tests.support.tiny_seq2seq import END, save_tiny_t5, seq2seq_backbone, tiny_t5
from tests.support.wires import HttpxWire

CHAT: Any = {"messages": [{"role": "user", "content": "hello there"}]}
KINDS = ("t5", "flan", "llama", "gpt2")


class Served:
    """A worker, its client, and the trainer's view of the same model."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.backbone: Backbone
        if kind in ("t5", "flan"):
            made = tiny_t5(flan=kind == "flan")
            self.folder = save_tiny_t5(folder / kind, made)
            self.backbone = seq2seq_backbone(made, cut=1)
        else:
            made = tiny_gpt2() if kind == "gpt2" else None
            self.folder = save_tiny_base(folder / kind, made)
            self.backbone = tiny_backbone(made, cut=1)
        stir(self.backbone, POLICY)
        adapters.round_to_stored(self.backbone, POLICY)
        self.adapter = folder / kind / "adapter"
        adapters.save(self.backbone, POLICY, self.adapter, kind)
        self.model = ServedModel(self.folder, dtype=None, device="cpu", max_model_len=128)
        self.scheduler = Scheduler(self.model, max_rows=4)
        self.app = Worker(self.model, self.scheduler).app()
        self.client = ReplicaClient(wire=HttpxWire(httpx.ASGITransport(self.app, raise_app_exceptions=False)))

    def trained(self, prompt: Sequence[int], response: Sequence[int], adapter: str | None) -> list[float]:
        """The trainer's log-probabilities."""
        encoded = self.backbone.encode([Exchange(tuple(prompt), tuple(response))])
        with self.backbone.using(adapter):
            found: list[float] = self.backbone.all_logprobs(encoded, [1.0])[0].tolist()
        return found

    @contextlib.asynccontextmanager
    async def loaded(self, name: str = "v1") -> AsyncIterator[str]:
        await self.client.load_adapter(name, self.adapter)
        yield name
        await self.client.unload_adapter(name)


@pytest.fixture(scope="module")
def all_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    folder = tmp_path_factory.mktemp("models")
    made = {kind: Served(kind, folder) for kind in KINDS}
    yield made
    for served in made.values():
        served.scheduler.close()


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest, all_served: dict[str, Served]) -> Served:
    return all_served[request.param]


@pytest.fixture
def t5(all_served: dict[str, Served]) -> Served:
    return all_served["t5"]


async def test_what_was_drawn_is_what_the_trainer_would_give_it(served: Served) -> None:
    """Ids and log-probabilities of a sampled answer, for base and adapter, from first token to end-of-text."""
    async with served.loaded() as name:
        for model, adapter in (("base", None), (name, POLICY)):
            body = CHAT | {"max_tokens": 24, "seed": 3, "n": 3}
            _, trace = await served.client.chat(body, model=model, version="v", request_id="r")
            assert trace.prompt_ids is not None
            assert (trace.prompt_ids[-1] == END) == (served.kind in ("t5", "flan"))
            for choice in trace.choices.values():
                assert choice.logprobs is not None
                wanted = served.trained(trace.prompt_ids, choice.response_ids, adapter)
                assert choice.logprobs == pytest.approx(wanted, abs=1e-3)


async def test_scores_are_the_trainers_for_base_and_adapter_in_a_padded_batch(served: Served) -> None:
    sequences = [
        TokenSequence(prompt_ids=[5, 6, 7, 1], response_ids=[8, 9, 2]),
        TokenSequence(prompt_ids=[10], response_ids=[11]),
        TokenSequence(prompt_ids=[0, 12], response_ids=[13, 1, 0, 14, 15]),
    ]
    async with served.loaded() as name:
        for model, adapter in (("base", None), (name, POLICY)):
            scored = await served.client.score(sequences, model=model, priority=5)
            for one, sequence in zip(scored, sequences, strict=True):
                assert one == pytest.approx(
                    served.trained(sequence.prompt_ids, sequence.response_ids, adapter), abs=1e-4
                )


async def test_greedy_answers_in_a_batch_are_those_of_transformers_generate(served: Served) -> None:
    """Prompts of unlike length, drawn in step, against generate() of each alone."""
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    asked = [GeneratePrompt(prompt_ids=ids) for ids in prompts]
    sampling = SamplingParams(temperature=0, max_tokens=12)
    answers = await served.client.generate(asked, model="base", n=1, sampling=sampling)
    assert [a.prompt_ids for a in answers] == prompts
    for answer, ids in zip(answers, prompts, strict=True):
        with torch.no_grad():
            out = served.model.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                do_sample=False,
                max_new_tokens=12,
                use_cache=False,
            )[0]
        start = 1 if served.model.has_encoder else len(ids)
        assert answer.response_ids == out[start:].tolist()


async def test_a_stream_says_what_the_whole_answer_says(served: Served) -> None:
    body = CHAT | {"max_tokens": 16, "seed": 5, "n": 2, "stream_options": {"include_usage": True}}
    whole, trace = await served.client.chat(body, model="base", version="v", request_id="r")
    stream = await served.client.chat_stream(body, model="base", version="v", request_id="s", on_close=lambda: None)
    chunks = await all_chunks(stream)
    assert stream.trace.choices == trace.choices
    assert stream.trace.prompt_ids == trace.prompt_ids
    assert stream.trace.usage == trace.usage == whole["usage"]
    assert [c.text for c in trace.choices.values()] == [c["message"]["content"] for c in whole["choices"]]  # type: ignore[union-attr,index,call-overload]
    assert len(chunks) > 16 and all(c.finish_reason in ("stop", "length") for c in trace.choices.values())


async def test_text_is_what_the_tokenizer_makes_of_the_ids(served: Served) -> None:
    _, trace = await served.client.chat(CHAT | {"max_tokens": 30}, model="base", version="v", request_id="r")
    choice = trace.choices[0]
    assert choice.text == served.model.decode(choice.response_ids)
    assert choice.finish_reason == ("stop" if choice.response_ids[-1] in served.model.ends else "length")


async def test_what_is_cut_off_has_no_log_probability_and_the_rest_more(t5: Served) -> None:
    body = CHAT | {"max_tokens": 8, "top_k": 2, "temperature": 0.5, "logprobs": True, "top_logprobs": 5}
    answer, trace = await t5.client.chat(body, model="base", version="v", request_id="r")
    for entry in answer["choices"][0]["logprobs"]["content"]:  # type: ignore[index,call-overload,union-attr]
        tops = entry["top_logprobs"]  # type: ignore[index,call-overload]
        assert len(tops) <= 2  # type: ignore[arg-type]
    assert trace.choices[0].logprobs is not None and min(trace.choices[0].logprobs) > -8


async def test_a_seed_repeats_an_answer_whatever_else_is_in_the_batch(t5: Served) -> None:
    async def ask(seed: int) -> list[int]:
        body = CHAT | {"max_tokens": 20, "seed": seed}
        _, trace = await t5.client.chat(body, model="base", version="v", request_id="r")
        return trace.choices[0].response_ids

    alone = await ask(7)
    together = await asyncio.gather(*(ask(seed) for seed in (7, 8, 9)))
    assert together[0] == alone and together[1] != alone


async def test_stop_strings_and_limits_end_an_answer(t5: Served) -> None:
    body = CHAT | {"max_tokens": 40, "seed": 1, "ignore_eos": True}
    _, trace = await t5.client.chat(body, model="base", version="v", request_id="r")
    text = trace.choices[0].text
    assert len(trace.choices[0].response_ids) == 40 and trace.choices[0].finish_reason == "length"
    stop = text[3:5]
    _, cut = await t5.client.chat(body | {"stop": stop}, model="base", version="v", request_id="r")
    assert stop
    assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"
    assert len(cut.choices[0].logprobs or []) == len(cut.choices[0].response_ids) < 40


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (CHAT | {"tools": [{}]}, "does not support tools"),
        (CHAT | {"max_tokens": 500}, "there is room for"),
        ({"messages": [{"role": "user", "content": "long " * 40}]}, "prompt and answer together"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must be text"),
    ],
)
async def test_refusals_say_why(t5: Served, body: Any, says: str) -> None:
    with pytest.raises(EngineRefused, match=says):
        await t5.client.chat(body, model="base", version="v", request_id="r")
    with pytest.raises(EngineRefused, match="does not exist"):
        await t5.client.chat(CHAT, model="v9", version="v", request_id="r")


async def test_a_prompt_that_leaves_no_room_has_vllms_code(t5: Served) -> None:
    with pytest.raises(EngineRefused) as caught:
        long = {"messages": [{"role": "user", "content": "long " * 40}]}
        await t5.client.chat(long, model="base", version="v", request_id="r")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_the_workers_methods_are_vllms(t5: Served) -> None:
    assert await t5.client.healthy()
    assert await t5.client.models() == {"base"}
    async with t5.loaded("v1-abc"):
        assert await t5.client.models() == {"base", "v1-abc"}
        (numbers,) = await t5.client.call_workers("plaudit_adapters")
        (digests,) = await t5.client.call_workers("plaudit_digests", numbers[0], 4)
        assert len(digests["digests"]) == 2 * len(t5.backbone.linears) and digests["dtype"] == "float32"
        with pytest.raises(EngineRefused, match="loaded already"):
            await t5.client.load_adapter("v1-abc", t5.adapter)
    assert await t5.client.call_workers("plaudit_adapters") == [[]]
    assert await t5.client.call_workers("plaudit_ping") == [{"ok": True}]
    with pytest.raises(EngineRefused, match="no method"):
        await t5.client.call_workers("os.remove")


async def test_an_adapter_taken_away_in_mid_answer_ends_it_and_no_other_model_goes_on(t5: Served) -> None:
    await t5.client.load_adapter("v1", t5.adapter)
    body = CHAT | {"max_tokens": 100, "ignore_eos": True}
    asking = asyncio.create_task(t5.client.chat(body, model="v1", version="v", request_id="r"))
    while not t5.scheduler.batches:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await t5.client.unload_adapter("v1")
    with pytest.raises(EngineError, match="no longer loaded"):
        await asking


async def test_too_many_requests_are_told_to_come_back(t5: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_server.engine.hf.scheduler.MAX_WAITING", 0)
    with pytest.raises(EngineUnavailable):
        await t5.client.chat(CHAT, model="base", version="v", request_id="r")


@contextlib.asynccontextmanager
async def on_a_socket(served: Served) -> AsyncIterator[ReplicaClient]:
    """The worker on a real Unix socket: only there can a caller go away."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "s"
        server = uvicorn.Server(uvicorn.Config(served.app, uds=str(socket), log_config=None, access_log=False))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with ReplicaClient(socket=socket) as client:
            yield client
        server.should_exit = True
        await task


ENDLESS = CHAT | {"max_tokens": 110, "ignore_eos": True}


async def nothing_is_drawn(served: Served) -> None:
    async with asyncio.timeout(10):
        while served.scheduler.batches:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_caller_who_leaves_a_stream_ends_the_drawing(t5: Served) -> None:
    async with on_a_socket(t5) as client:
        stream = await client.chat_stream(ENDLESS, model="base", version="v", request_id="r", on_close=lambda: None)
        chunks = each_chunk(stream)
        for _ in range(3):
            await anext(chunks)
        await stream.aclose()
        await nothing_is_drawn(t5)
    assert 1 <= len(stream.trace.choices[0].response_ids) < 110


async def test_a_caller_who_gives_up_a_whole_answer_ends_the_drawing(t5: Served) -> None:
    async with on_a_socket(t5) as client:
        asking = asyncio.create_task(client.chat(ENDLESS, model="base", version="v", request_id="r"))
        async with asyncio.timeout(10):
            while not t5.scheduler.batches:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await nothing_is_drawn(t5)
