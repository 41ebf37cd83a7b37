"""The fake engine is deterministic, loud, and fails when told to."""

import logging
from pathlib import Path

import pytest

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit_server.engine.base import AdapterRef, Engine
from plaudit_server.engine.fake import FakeEngine
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable
from tests.support.streams import all_chunks, each_chunk

BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def engine() -> FakeEngine:
    made = FakeEngine()
    made.down = False
    return made


def test_it_is_an_engine() -> None:
    engine: Engine = FakeEngine()
    assert engine.is_fake


async def test_it_says_so(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await engine.start()
    await engine.close()
    assert "FAKE ENGINE" in caplog.text
    engine.down = False
    answer, _ = await engine.chat(BODY, version="base", request_id="r")
    assert answer["choices"][0]["message"]["content"].startswith("[fake engine]")  # type: ignore[index,call-overload,union-attr]


async def test_the_same_question_has_the_same_answer(engine: FakeEngine) -> None:
    _, first = await engine.chat(BODY, version="base", request_id="a")
    _, second = await engine.chat(BODY, version="base", request_id="b")
    _, seeded = await engine.chat(BODY | {"seed": 7}, version="base", request_id="c")
    assert first.choices == second.choices
    assert seeded.choices[0].text != first.choices[0].text


async def test_a_stream_says_what_the_whole_answer_says(engine: FakeEngine) -> None:
    answer, whole = await engine.chat(BODY | {"n": 2, "logprobs": True}, version="base", request_id="a")
    stream = await engine.chat_stream(BODY | {"n": 2, "logprobs": True}, version="base", request_id="b")
    texts = {0: "", 1: ""}
    async for chunk in each_chunk(stream):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert stream.trace.choices == whole.choices
    assert texts == {index: choice.text for index, choice in whole.choices.items()}
    for index, choice in whole.choices.items():
        said = [entry["logprob"] for entry in answer["choices"][index]["logprobs"]["content"]]  # type: ignore[index,call-overload,union-attr]
        assert said == choice.logprobs
        assert len(choice.response_ids) == len(said)


async def test_max_tokens_cuts(engine: FakeEngine) -> None:
    _, trace = await engine.chat(BODY | {"max_tokens": 3}, version="base", request_id="a")
    assert (len(trace.choices[0].response_ids), trace.choices[0].finish_reason) == (3, "length")


async def test_failures(engine: FakeEngine) -> None:
    with pytest.raises(EngineUnavailable):
        await engine.chat(BODY, version="v9", request_id="a")
    engine.refuse = EngineRefused(400, "no such template")
    with pytest.raises(EngineRefused, match="template"):
        await engine.chat(BODY, version="base", request_id="a")
    engine.refuse = None
    engine.fail_after_tokens = 2
    stream = await engine.chat_stream(BODY, version="base", request_id="a")
    with pytest.raises(EngineError, match="broke down"):
        await all_chunks(stream)
    assert len(stream.trace.choices[0].response_ids) == 2


async def test_closing_a_stream_aborts_it(engine: FakeEngine) -> None:
    stream = await engine.chat_stream(BODY, version="base", request_id="req-1")
    await anext(each_chunk(stream))
    await stream.aclose()
    assert engine.aborted == ["req-1"]


async def test_install_and_retire(engine: FakeEngine, tmp_path: Path) -> None:
    missing = AdapterRef("v1", "base", str(tmp_path), "0" * 64)
    assert (await engine.install(missing)).passed is False
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    wrong = await engine.install(missing)
    assert wrong.reason == "manifest.json is not the one that was registered"
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    adapter = AdapterRef("v1", "base", str(tmp_path), sha256)
    engine.unproven = {"v1"}
    assert (await engine.install(adapter)).passed is False
    assert engine.resident() == {"base"}
    engine.unproven = set()
    assert (await engine.install(adapter)).passed is True
    assert engine.is_ready("v1")
    await engine.retire("v1")
    assert not engine.is_ready("v1")
    engine.crash()
    with pytest.raises(EngineUnavailable):
        await engine.install(adapter)


async def test_generate_and_score(engine: FakeEngine) -> None:
    prompts = [GeneratePrompt(messages=BODY["messages"]), GeneratePrompt(prompt_ids=[1, 2, 3])]  # type: ignore[arg-type]
    answers = await engine.generate(prompts, version="base", n=2, sampling=SamplingParams(max_tokens=4))
    assert [answer.prompt_index for answer in answers] == [0, 0, 1, 1]
    assert answers[2].prompt_ids == [1, 2, 3]
    assert all(len(answer.response_ids) == len(answer.logprobs) == 4 for answer in answers)
    scored = await engine.score([TokenSequence(prompt_ids=[1], response_ids=[2, 3])], version="base")
    assert [len(one) for one in scored] == [2]
