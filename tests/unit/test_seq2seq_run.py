"""The whole run, votes to workspace, on a tiny model with an encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.wire.versions import Probe
from plaudit_trainer import adapters
from plaudit_trainer.learner import Job, learn
from plaudit_trainer.models import POLICY, REFERENCE, Exchange
from plaudit_trainer.run import load_policy, text_encoder
from plaudit_trainer.seq2seq import Seq2SeqBackbone
from tests.support.tiny_models import tiny_config
from tests.support.tiny_seq2seq import END, save_tiny_t5, seq2seq_backbone, tiny_t5
from tests.support.tiny_votes import Quiet, TinyEngine, run, share_liked, votes_on

# Any finite policy passes: the run is under test, not what these votes can teach.
LENIENT: dict[str, Any] = {
    "reward_bar": 0.0,
    "gate_win_rate": 0.0,
    "gate_length_growth": 99,
    "gate_end_of_text_drop": 1,
    "gate_refusal_growth": 1,
    "gate_entropy_change": 99,
    "gate_disagreement_growth": 1e6,
    "kl_ceiling": 1e6,
    "lr": 3e-3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("base"), tiny_t5(flan=True))


def engine() -> TinyEngine:
    made = TinyEngine()
    made.backbone = seq2seq_backbone(tiny_t5(flan=True))
    return made


def test_a_run_makes_a_version_that_the_next_run_goes_on_from(base: Path, tmp_path: Path) -> None:
    serving, folders = engine(), {name: tmp_path / name for name in ("v1", "v2")}
    for folder in folders.values():
        folder.mkdir()
    first = learn(
        Job(run(), votes_on(serving), base, folders["v1"]), serving, Quiet(), tiny_config(**LENIENT, lora_layers=0.5)
    )
    assert first.verdict == "candidate", first.reason
    assert first.metrics["ppo/mean_change"] > 0 and first.metrics["reward/heldout_auroc"] > 0.5
    weights = adapters.read_weights(folders["v1"] / "adapter")
    assert weights and all(name.startswith("decoder.") for name in weights)

    proof_of(base, folders["v1"])

    # The second run may adapt less, yet must go on with all that its parent adapts.
    job = Job(run(parent_location=folders["v1"], warm_start=folders["v1"]), votes_on(serving), base, folders["v2"])
    second = learn(job, serving, Quiet(), tiny_config(**LENIENT, lora_layers=0.2))
    assert second.verdict == "candidate", second.reason
    after = adapters.read_weights(folders["v2"] / "adapter")
    assert set(after) == set(weights) and any(not torch.equal(after[name], weights[name]) for name in weights)


def proof_of(base: Path, folder: Path) -> None:
    """The probe says what the published bytes give on the plain model."""
    backbone = seq2seq_backbone(tiny_t5(flan=True), cut=0)
    adapters.write_into(backbone, POLICY, adapters.read_weights(folder / "adapter"))
    probe = Probe.model_validate_json((folder / "probe.json").read_text())
    for sequence in probe.sequences[:6]:
        encoded = backbone.encode([Exchange(tuple(sequence.prompt_ids), tuple(sequence.response_ids))])
        for name, said in ((POLICY, sequence.new_logprobs), (REFERENCE, sequence.parent_logprobs)):
            with backbone.using(name):
                got = backbone.all_logprobs(encoded, [1.0])[0]
            torch.testing.assert_close(got, torch.tensor(said), atol=1e-4, rtol=1e-4)
        assert sequence.new_logprobs != sequence.parent_logprobs


def test_ppo_moves_answers_towards_what_users_like(base: Path, tmp_path: Path) -> None:
    """Three runs on the votes of users with one taste; answers to unseen prompts are measured before and after."""
    from plaudit_trainer.rollouts import generate_unpublished

    serving, parent = engine(), None
    prompts = [TinyEngine.ids(f"unseen {number}") for number in range(96)]

    def liked() -> float:
        answers = generate_unpublished(serving.backbone, prompts, max_new_tokens=12, temperature=1.0, seed=7)
        return sum(share_liked(a.response_ids) for a in answers) / len(answers)

    before = liked()
    for number in (1, 2, 3):
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        job = Job(run(parent_location=parent, warm_start=parent), votes_on(serving, 96), base, folder)
        outcome = learn(job, serving, Quiet(), tiny_config(**LENIENT | {"lr": 1e-2}, lora_layers=1.0))
        assert outcome.verdict == "candidate", outcome.reason
        serving.backbone = seq2seq_backbone(tiny_t5(flan=True), cut=0)
        adapters.write_into(serving.backbone, POLICY, adapters.read_weights(folder / "adapter"))
        parent = folder
    assert liked() > before + 0.05


@pytest.mark.parametrize(
    ("share", "lowest"), [(1.0, "encoder.block.0"), (0.6, "decoder.block.0"), (0.2, "decoder.block.2")]
)
def test_the_share_of_layers_counts_from_the_top_of_the_stack(
    base: Path, tmp_path: Path, share: float, lowest: str
) -> None:
    job = Job(run(), votes_on(engine(), 4), base, tmp_path)
    backbone, _ = load_policy(job, tiny_config(lora_layers=share))
    assert isinstance(backbone, Seq2SeqBackbone)
    assert next(iter(backbone.linears)).startswith(lowest)


def test_written_texts_become_what_the_encoder_reads_and_the_decoder_ends(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    encode = text_encoder(tokenizer, END, has_encoder=True)
    prompt, answer = encode([{"role": "user", "content": "ab"}], "cd")
    assert (prompt, answer) == ([3, 4, END], [5, 6, END])
