"""VllmEngine against a stub of vLLM: routing, installing with proof, retiring, coming back. Real vLLM is in e2e."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratePrompt, TokenSequence
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable
from plaudit_server.settings import Settings
from tests.support.engine_folders import make_base
from tests.support.engine_stub import StubVllm, logprobs, make_version
from tests.support.server import until
from tests.support.streams import all_chunks

CHAT: Any = {"messages": [{"role": "user", "content": "hi"}]}


class Fleet:
    """An engine over stubs, brought up without keepers."""

    def __init__(self, base: Path, replicas: int, **settings: Any) -> None:
        urls = [f"http://{n}" for n in range(replicas)]
        self.engine = VllmEngine(Settings(engine_urls=urls, **settings), base)
        self.stubs = [StubVllm() for _ in range(replicas)]

    async def up(self, *places: int) -> None:
        for place in places or range(len(self.stubs)):
            replica = self.engine.fleet.replicas[place]
            replica.client = self.stubs[place].client()
            await self.engine.residency.restore(replica)

    def down(self, place: int) -> None:
        self.stubs[place].up = False
        replica = self.engine.fleet.replicas[place]
        replica.state = "down"
        replica.forget()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def v1(tmp_path: Path, base: Path) -> AdapterRef:
    return make_version(tmp_path, base, "v1")


@pytest.fixture
def v2_weights(tmp_path: Path, base: Path) -> Path:
    return Path(make_version(tmp_path, base, "v2").location) / "adapter"


@pytest.fixture
async def fleet(base: Path) -> Fleet:
    fleet = Fleet(base, 2)
    await fleet.up()
    return fleet


async def test_before_anything_is_up_chat_says_try_again(base: Path) -> None:
    engine = Fleet(base, 1).engine

    assert not engine.is_ready() and engine.resident() == set()
    with pytest.raises(EngineUnavailable, match="not ready"):
        await engine.chat(CHAT, version="base", request_id="r")


async def test_a_good_version_is_proven_on_every_replica(fleet: Fleet, v1: AdapterRef) -> None:
    report = await fleet.engine.install(v1)

    assert report.passed, report.reason
    assert [p.replica for p in report.replicas] == ["engine-0", "engine-1"]
    for proof in report.replicas:
        assert proof.tensors_matched == proof.tensors_expected == 6
        assert proof.low is not None and 0.8 < proof.low < 1 < (proof.high or 0) < 1.2
    assert fleet.engine.resident() == {"base", "v1"} and fleet.engine.is_ready("v1")


async def test_installing_again_loads_nothing(fleet: Fleet, v1: AdapterRef) -> None:
    first = await fleet.engine.install(v1)
    calls = len(fleet.stubs[0].calls)

    assert await fleet.engine.install(v1) == first
    assert len(fleet.stubs[0].calls) == calls


def _load_skipped(stub: StubVllm, _: Path) -> None:
    stub.skip_load = True


def _base_served(stub: StubVllm, _: Path) -> None:
    stub.serve_base = True


def _other_adapter(stub: StubVllm, other: Path) -> None:
    stub.load_instead = other


def _wrong_base(stub: StubVllm, _: Path) -> None:
    stub.shift = -0.3


def _mute_workers(stub: StubVllm, _: Path) -> None:
    stub.extension = False


FAULTS: dict[str, Callable[[StubVllm, Path], None]] = {
    "hold 0 new adapters": _load_skipped,
    "the parent or nothing is live": _base_served,
    "holds 0 of 6 tensors": _other_adapter,
    "base model or the parent is another": _wrong_base,
    "worker-extension-cls": _mute_workers,
}


@pytest.mark.parametrize("says", FAULTS)
@pytest.mark.parametrize("places", [(0, 1), (1,)], ids=["everywhere", "on one replica"])
async def test_a_fault_is_caught_named_and_undone(
    says: str, places: tuple[int, ...], fleet: Fleet, v1: AdapterRef, v2_weights: Path
) -> None:
    for place in places:
        FAULTS[says](fleet.stubs[place], v2_weights)

    report = await fleet.engine.install(v1)

    assert not report.passed and report.reason is not None and says in report.reason
    assert [p.passed for p in report.replicas] == [n not in places for n in range(2)]
    assert not fleet.engine.is_ready("v1") and fleet.engine.resident() == {"base"}
    for stub in fleet.stubs:
        assert stub.names == {} and stub.tensors == {}, "nothing of it is left"
    with pytest.raises(EngineUnavailable, match="v1 is not live"):
        await fleet.engine.chat(CHAT, version="v1", request_id="r")


async def test_after_a_failure_the_next_attempt_has_a_new_name(fleet: Fleet, v1: AdapterRef) -> None:
    fleet.stubs[0].serve_base = True
    await fleet.engine.install(v1)
    fleet.stubs[0].serve_base = False

    assert (await fleet.engine.install(v1)).passed

    loads = [body["lora_name"] for path, body in fleet.stubs[0].calls if path == "/v1/load_lora_adapter"]
    assert len(set(loads)) == 2
    assert all(name.startswith(f"v1-{v1.manifest_sha256[:8]}-") for name in loads)


async def test_a_bad_artefact_is_reported_and_never_reaches_vllm(fleet: Fleet, v1: AdapterRef) -> None:
    (Path(v1.location) / "adapter/adapter_model.safetensors").write_bytes(b"x")

    report = await fleet.engine.install(v1)

    assert not report.passed and report.replicas == []
    assert report.reason == "adapter/adapter_model.safetensors is not what the manifest says (size or SHA-256 differs)"
    assert not any(path == "/v1/load_lora_adapter" for path, _ in fleet.stubs[0].calls)


async def test_a_parent_that_is_not_resident_is_loaded_for_the_proof_only(
    fleet: Fleet, v1: AdapterRef, tmp_path: Path, base: Path
) -> None:
    v2 = make_version(tmp_path, base, "v2", parent=v1)

    report = await fleet.engine.install(v2)

    assert report.passed, report.reason
    assert fleet.engine.resident() == {"base", "v2"}
    assert len(fleet.stubs[0].tensors) == 1


async def test_a_parent_that_is_nowhere_is_named(fleet: Fleet, v1: AdapterRef, tmp_path: Path, base: Path) -> None:
    v2 = make_version(tmp_path, base, "v2", parent=v1)
    (tmp_path / "v1").rename(tmp_path / "gone")

    report = await fleet.engine.install(v2)

    assert not report.passed and report.reason is not None and "its parent v1" in report.reason


async def test_room_is_bounded(base: Path, v1: AdapterRef, tmp_path: Path) -> None:
    fleet = Fleet(base, 1, engine_max_loras=2)
    await fleet.up()
    await fleet.engine.install(v1)
    await fleet.engine.install(make_version(tmp_path, base, "v2"))

    report = await fleet.engine.install(make_version(tmp_path, base, "v3"))

    assert not report.passed and report.reason is not None and "retire one" in report.reason
    await fleet.engine.retire("v1")
    assert (await fleet.engine.install(make_version(tmp_path, base, "v3"))).passed


async def test_a_replica_that_restarts_gets_everything_back_before_it_is_ready(fleet: Fleet, v1: AdapterRef) -> None:
    await fleet.engine.install(v1)
    fleet.down(0)
    assert fleet.engine.is_ready("v1"), "the other replica serves on"
    fleet.stubs[0].restart()
    fleet.stubs[0].up = True

    await fleet.up(0)

    assert set(fleet.engine.fleet.replicas[0].resident) == {"v1"}
    assert fleet.engine.resident() == {"base", "v1"}


async def test_a_replica_on_which_the_proof_no_longer_holds_serves_without_it(fleet: Fleet, v1: AdapterRef) -> None:
    await fleet.engine.install(v1)
    fleet.down(0)
    fleet.stubs[0].restart()
    fleet.stubs[0].up = fleet.stubs[0].serve_base = True

    await fleet.up(0)

    assert fleet.engine.fleet.replicas[0].state == "ready"
    assert fleet.engine.fleet.serving("v1") == [fleet.engine.fleet.replicas[1]]
    await fleet.engine.chat(CHAT, version="v1", request_id="r")
    assert not any(path == "/v1/chat/completions" for path, _ in fleet.stubs[0].calls)


async def test_what_an_earlier_server_left_behind_is_cleared(base: Path, v1: AdapterRef) -> None:
    fleet = Fleet(base, 1)
    fleet.stubs[0].names["v1-00000000"] = 7
    fleet.stubs[0].tensors[7] = Path(v1.location) / "adapter"

    await fleet.up()

    assert fleet.stubs[0].names == {} and fleet.stubs[0].tensors == {}


async def test_a_replica_lost_during_the_swap_does_not_condemn_the_version(fleet: Fleet, v1: AdapterRef) -> None:
    fleet.stubs[1].up = False

    report = await fleet.engine.install(v1)

    assert report.passed and [p.replica for p in report.replicas] == ["engine-0"]


async def test_with_no_replica_left_the_swap_can_be_tried_again(fleet: Fleet, v1: AdapterRef) -> None:
    fleet.stubs[0].up = fleet.stubs[1].up = False

    with pytest.raises(EngineUnavailable):
        await fleet.engine.install(v1)


async def test_the_same_version_with_another_manifest_is_refused(
    fleet: Fleet, v1: AdapterRef, tmp_path: Path, base: Path
) -> None:
    await fleet.engine.install(v1)
    changed = make_version(tmp_path / "other", base, "v1", seed=99)

    report = await fleet.engine.install(changed)

    assert not report.passed and report.reason is not None and "a version never changes" in report.reason
    assert fleet.engine.is_ready("v1")


async def test_retiring_waits_for_requests_and_frees_the_workers(fleet: Fleet, v1: AdapterRef) -> None:
    await fleet.engine.install(v1)
    for stub in fleet.stubs:
        stub.may_talk.clear()
    chat = asyncio.create_task(fleet.engine.chat(CHAT, version="v1", request_id="r"))
    await until(lambda: any(replica.load for replica in fleet.engine.fleet.replicas))

    retiring = asyncio.create_task(fleet.engine.retire("v1"))
    await until(lambda: not fleet.engine.is_ready("v1"))

    assert not retiring.done()
    for stub in fleet.stubs:
        stub.may_talk.set()
    answer, _ = await chat
    await retiring
    assert answer["model"] == "v1"
    assert all(stub.tensors == {} for stub in fleet.stubs)
    await fleet.engine.retire("v1")
    await fleet.engine.retire("v404")


async def test_the_least_loaded_replica_is_asked(fleet: Fleet) -> None:
    for stub in fleet.stubs:
        stub.chat_delay_s = 0.05

    nobody: Any = {"messages": []}
    await asyncio.gather(*(fleet.engine.chat(nobody, version="base", request_id=str(n)) for n in range(6)))

    assert [sum(path == "/v1/chat/completions" for path, _ in stub.calls) for stub in fleet.stubs] == [3, 3]


async def test_a_stream_counts_as_load_until_it_is_closed(fleet: Fleet) -> None:
    stream = await fleet.engine.chat_stream(CHAT, version="base", request_id="r")
    assert [replica.load for replica in fleet.engine.fleet.replicas].count(1) == 1

    chunks = await all_chunks(stream)

    assert [c["model"] for c in chunks] == ["policy@v7"]
    assert stream.trace.choices[0].response_ids == [7] and stream.trace.choices[0].logprobs == [-0.5]
    assert not any(replica.load for replica in fleet.engine.fleet.replicas)


async def test_an_abandoned_stream_is_uncounted_too(fleet: Fleet) -> None:
    stream = await fleet.engine.chat_stream(CHAT, version="base", request_id="r")
    await stream.aclose()

    assert not any(replica.load for replica in fleet.engine.fleet.replicas)


async def test_generated_answers_come_in_the_prompts_order_from_all_replicas(fleet: Fleet) -> None:
    prompts = [GeneratePrompt(prompt_ids=[1, n]) for n in range(5)]

    answers = await fleet.engine.generate(prompts, version="base", n=2, sampling=SamplingParams(max_tokens=4))

    assert [a.prompt_index for a in answers] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(a.prompt_ids == [1, a.prompt_index] for a in answers)
    asked = [body for stub in fleet.stubs for path, body in stub.calls if path == "/v1/completions"]
    assert len(asked) == 10 and all(body["priority"] > 0 and body["max_tokens"] == 4 for body in asked)
    assert all(stub.calls for stub in fleet.stubs)


async def test_several_answers_to_one_prompt_are_requests_of_their_own(fleet: Fleet) -> None:
    """Else they would all go beside the users' answers at once; their seeds are those vLLM gives the answers of one."""
    sampling = SamplingParams(max_tokens=4, seed=7)

    await fleet.engine.generate([GeneratePrompt(prompt_ids=[1, 2])], version="base", n=3, sampling=sampling)

    asked = [body for stub in fleet.stubs for path, body in stub.calls if path == "/v1/completions"]
    assert sorted(body["seed"] for body in asked) == [7, 8, 9]
    assert all(body.get("n", 1) == 1 for body in asked)


async def test_scores_are_those_of_the_response(fleet: Fleet) -> None:
    fleet.stubs[0].noise = 0
    sequences = [TokenSequence(prompt_ids=[1, n], response_ids=[5, 6, n]) for n in range(20)]

    scores = await fleet.engine.score(sequences, version="base")

    assert scores == [pytest.approx(logprobs("base", [1, n, 5, 6, n])[2:]) for n in range(20)]


async def test_refusals_of_vllm_are_passed_on(fleet: Fleet) -> None:
    client = fleet.stubs[0].client()

    with pytest.raises(EngineRefused, match="does not exist") as caught:
        await client.chat(CHAT, model="nope", version="v1", request_id="r")

    assert (caught.value.status, caught.value.param) == (404, "model")
    assert isinstance(caught.value, EngineError)


@pytest.mark.parametrize("blamed", ["input_tokens", "input_text"])
async def test_a_prompt_that_leaves_no_room_has_a_code_of_its_own(fleet: Fleet, blamed: str) -> None:
    fleet.stubs[0].broken, fleet.stubs[0].blames = 400, blamed

    with pytest.raises(EngineRefused) as caught:
        await fleet.stubs[0].client().chat(CHAT, model="base", version="base", request_id="r")

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_a_sequence_too_long_to_score_is_not_blamed_on_messages(fleet: Fleet) -> None:
    fleet.stubs[0].broken, fleet.stubs[0].blames = 400, "input_tokens"
    sequence = TokenSequence(prompt_ids=[1, 2], response_ids=[3])

    with pytest.raises(EngineRefused) as caught:
        await fleet.stubs[0].client().score([sequence], model="base", priority=0)

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "sequences")


async def test_health_names_what_each_replica_holds(fleet: Fleet, v1: AdapterRef) -> None:
    await fleet.engine.install(v1)
    fleet.down(1)

    first, second = fleet.engine.health()

    assert (first.state, first.resident) == ("ready", ["base", "v1"])
    assert (second.state, second.resident) == ("down", [])


def scored(stub: StubVllm) -> int:
    return sum(len(body["prompt"]) for path, body in stub.calls if path == "/v1/completions")


@pytest.mark.parametrize(("noise", "sequences"), [(0.001, 4), (0.004, 8)])
async def test_a_proof_without_doubt_asks_for_a_part_of_the_probe(
    base: Path, v1: AdapterRef, noise: float, sequences: int
) -> None:
    fleet = Fleet(base, 1)
    await fleet.up()
    fleet.stubs[0].noise = noise

    report = await fleet.engine.install(v1)

    assert report.passed and report.replicas[0].tokens == sequences * 20
    assert scored(fleet.stubs[0]) == 2 * sequences


async def test_a_proof_in_doubt_asks_for_all_of_it(base: Path, v1: AdapterRef) -> None:
    fleet = Fleet(base, 1)
    await fleet.up()

    report = await fleet.engine.install(v1)

    assert report.passed and report.replicas[0].tokens == 12 * 20
    assert scored(fleet.stubs[0]) == 2 * 12


async def test_what_looks_wrong_at_first_is_judged_by_all_of_the_probe(base: Path, v1: AdapterRef) -> None:
    fleet = Fleet(base, 1)
    await fleet.up()
    fleet.stubs[0].serve_base = True

    report = await fleet.engine.install(v1)

    assert not report.passed and report.replicas[0].tokens == 12 * 20
