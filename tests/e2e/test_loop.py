"""The loop on real parts: chat → votes → reward model → PPO → gate → publish → proven swap → promote → rollback.

One service (real vLLM, the bundled model) and one trainer serve all tests of this file, in order.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from plaudit import Plaudit
from plaudit.errors import ServiceUnavailableError
from plaudit.wire.training import TokenSequence
from plaudit.wire.versions import Probe, Version
from tests.support.quick_trainer import QUICK, VOTES, questions
from tests.support.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("loop"), model=base_model, environment=QUICK)
    stack.start("server")
    try:
        stack.wait_ready()
        yield stack
    finally:
        engine = stack.engine_processes()
        codes = stack.stop()
    assert codes == {"trainer": 0, "server": 0} or "trainer" not in codes
    assert not [process for process in engine if process.is_running() and process.status() != "zombie"], "orphans"


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Plaudit]:
    with Plaudit(base_url=stack.url, api_key=stack.key(), timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def published(stack: Stack, client: Plaudit) -> Version:
    """The first version, trained on votes that were really cast on answers that were really given."""
    for number, question in enumerate(questions()):
        reply = client.chat.create(question, max_tokens=32, temperature=1.0, user=f"user-{number % 8}")
        client.feedback.create(reply.response_id, "\n" not in reply.text.strip(), end_user=f"user-{number % 8}")
    stack.start("trainer")

    def look() -> Version | None:
        assert stack.processes["trainer"].poll() is None, stack.log("trainer")
        versions = [v for v in client.versions.list().data if v.name == "v1" and v.state != "loading"]
        return versions[0] if versions else None

    return wait_for("v1 to be published and proven", look, seconds=600, pause=1)


def test_the_official_openai_package_streams_and_names_the_version(stack: Stack):
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key()) as chat:
        whole = chat.chat.completions.create(
            model="policy",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=24,
        )
        assert "Paris" in (whole.choices[0].message.content or "")
        assert whole.model == "policy@base"
        pieces = list(
            chat.chat.completions.create(
                model="policy",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=24,
                stream=True,
            )
        )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 3


def test_what_was_said_is_kept_exactly(stack: Stack, client: Plaudit):
    reply = client.chat.create("Name three colours.", max_tokens=16, temperature=1.0, user="exact")
    stored = wait_for("the row", lambda: client.completions.get(reply.response_id), seconds=10)
    assert stored.content == reply.text
    assert stored.completion_tokens == reply.usage["completion_tokens"]  # type: ignore[index]
    assert stored.version == "base" and stored.finish_reason in ("stop", "length")


def test_a_comparison_of_two_answers_is_kept(client: Plaudit):
    first, second = (client.chat.create("Say hello.", max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 2))
    kept = client.comparisons.create(first.response_id, second.response_id, end_user="user-1")
    assert (kept.chosen, kept.rejected) == (first.response_id, second.response_id)


def test_the_version_is_trained_gated_published_and_proven(published: Version, stack: Stack):
    assert published.state == "ready", f"{published.reason}\n{stack.log('trainer')}"
    assert published.gate is not None and published.gate.passed
    assert published.proof is not None and published.proof.passed
    (replica,) = published.proof.replicas
    assert replica.low is not None and replica.high is not None
    assert replica.low <= 1 <= replica.high or abs((replica.slope or 0) - 1) < 0.2
    assert replica.tensors_matched == replica.tensors_expected > 0
    assert published.records == VOTES + 2, "every voted answer, and the two that were compared"


def test_the_served_log_probabilities_are_the_trainers(published: Version, client: Plaudit):
    assert published.location is not None
    probe = Probe.model_validate_json((Path(published.location) / "probe.json").read_bytes())
    sequences = probe.sequences[:32]
    asked = [TokenSequence(prompt_ids=s.prompt_ids, response_ids=s.response_ids) for s in sequences]
    new = client.training.score("v1", asked).logprobs
    parent = client.training.score("base", asked).logprobs
    off = [abs(a - b) for s, row in zip(sequences, new, strict=True) for a, b in zip(s.new_logprobs, row, strict=True)]
    assert statistics.mean(off) < 0.15  # engine and trainer round bf16 differently: 0.04 to 0.07 a token
    trained = [n - p for s in sequences for n, p in zip(s.new_logprobs, s.parent_logprobs, strict=True)]
    served = [n - p for a, b in zip(new, parent, strict=True) for n, p in zip(a, b, strict=True)]
    slope = sum(t * v for t, v in zip(trained, served, strict=True)) / sum(t * t for t in trained)
    assert 0.8 < slope < 1.2


def test_an_unpromoted_version_gets_no_traffic_until_it_is_promoted(published: Version, client: Plaudit):
    assert client.chat.create("Hello!", max_tokens=4).version == "base"
    client.versions.promote(published.name, reason="end-to-end test")
    reply = client.chat.create("Hello!", max_tokens=4)
    assert reply.version == "v1"
    assert reply.model == "policy@v1"
    assert reply.system_fingerprint == published.fingerprint


def test_rollback_takes_effect_for_the_next_answer_and_streams_in_flight_keep_their_version(
    published: Version, client: Plaudit
):
    with client.chat.stream(
        "Tell me a long story about a fox.", max_tokens=48, extra_body={"ignore_eos": True}
    ) as stream:
        chunks = iter(stream)
        next(chunks)
        client.rollback(to="previous", reason="end-to-end test")
        assert client.chat.create("Hello!", max_tokens=4).version == "base"
        for _ in chunks:
            pass
        assert stream.version == "v1"
    assert {"promote", "rollback"} <= {entry.action for entry in client.audit.list().data}


def test_lineage_names_the_batch_and_counts_the_votes(published: Version, client: Plaudit):
    lineage = client.versions.lineage(published.name)
    assert lineage.parents == ["base"]
    assert lineage.feedback["records"] == published.records
    assert lineage.feedback["up"] + lineage.feedback["down"] == VOTES
    assert lineage.feedback["comparisons"] == 1


def test_the_manifest_on_disk_is_what_was_registered(published: Version):
    import hashlib

    assert published.location is not None
    manifest = (Path(published.location) / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == published.manifest_sha256
    assert json.loads(manifest)["version"] == published.name


def test_a_version_with_tampered_weights_is_never_served(published: Version, stack: Stack, client: Plaudit):
    """The artefact on disk is changed behind the server's back; after an engine restart it must not come back."""
    client.versions.promote(published.name, reason="to be tampered with")
    reply = client.chat.create("Hello!", max_tokens=4)
    weights = Path(published.location or "") / "adapter" / "adapter_model.safetensors"
    original = weights.read_bytes()
    changed = bytearray(original)
    changed[-5] ^= 0x40
    weights.write_bytes(bytes(changed))
    try:
        stack.kill("engine")
        wait_for("the engine to be seen down", lambda: not stack.is_up(), seconds=30)
        wait_for("the engine to be back", lambda: client.health().engine == "ready", seconds=300)
        assert client.chat.create("What is 1 + 1?", model="policy@base", max_tokens=4).version == "base"
        impatient = Plaudit(base_url=stack.url, api_key=stack.key(), max_retries=0)
        with impatient, pytest.raises(ServiceUnavailableError, match="v1"):
            impatient.chat.create("Hello!", max_tokens=4)
        assert client.feedback.create(reply.response_id, True, end_user="meanwhile").value == 1
    finally:
        weights.write_bytes(original)
        client.rollback(to="base", reason="end of the tampering test")
    assert client.chat.create("Hello!", max_tokens=4).version == "base"
