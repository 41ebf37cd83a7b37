"""Which votes the policy's reward model sees, which only its judge; and what a reader of another kind adds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit_trainer import batches, rewarding
from plaudit_trainer.architecture import UnsupportedModel
from plaudit_trainer.batches import Pair, PreferenceBatch, Single
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job
from plaudit_trainer.models import Exchange
from plaudit_trainer.readers import EncoderReader, Readers, reader_for
from tests.support.tiny_models import END, save_tiny_base, tiny_backbone, tiny_config
from tests.support.training_rows import leased, run_on


def batch_of(count: int, seed: int = 0) -> PreferenceBatch:
    """Users like low tokens; every tenth example is a pair."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (count, 2, 6), generator=generator).tolist()
    singles, pairs = [], []
    for i, (one, other) in enumerate(ids):
        prompt, users, cluster = (5, 6 + i % 40), frozenset([f"u{i}"]), f"{seed} cluster {i}"
        first, second = sorted([(*one, END), (*other, END)], key=sum)
        if i % 10:
            singles.append(Single(f"r{i}", (prompt, first), float(sum(first) < 180), 1.0, users, cluster))
        else:
            pairs.append(Pair("comparison", (prompt, first), (prompt, second), 1.0, users, cluster))
    return PreferenceBatch(singles, pairs, [], {})


def job(warm: Path | None = None) -> Job:
    return Job(run_on(warm), leased([]), Path(), Path())


def fit(batch: PreferenceBatch, warm: Path | None = None, **changes: Any) -> tuple[rewarding.Rewards, dict[str, float]]:
    metrics: dict[str, float] = {}
    config = tiny_config(**({"heldout_share": 0.3} | changes))
    backbone = tiny_backbone()
    return rewarding.fit(job(warm), batch, backbone.encode, reader=None, metrics=metrics, config=config), metrics


def test_a_large_batch_leaves_votes_on_heldout_prompts_to_the_judge() -> None:
    batch = batch_of(160)
    rewards, metrics = fit(batch)
    held = batches.heldout_clusters([e.cluster for e in batch.examples], 0.3)
    assert rewards.independent is not None
    assert rewards.independent.model.votes == len(held) > 20
    assert rewards.judge.votes == rewards.independent.quality.n == 160 - len(held)
    assert metrics["reward/independent_votes"] == len(held)


def test_the_two_models_share_no_vote() -> None:
    """Turning round every vote on held-out prompts changes the judge and leaves the policy's model as it was."""
    batch = batch_of(160)
    held = batches.heldout_clusters([e.cluster for e in batch.examples], 0.3)
    turned = [
        Single(s.response_id, s.tokens, 1 - s.label if s.cluster in held else s.label, 1.0, s.users, s.cluster)
        for s in batch.singles
    ]
    before, _ = fit(batch)
    after, _ = fit(PreferenceBatch(turned, batch.pairs, [], {}))
    assert torch.equal(before.judge.weight_FK, after.judge.weight_FK)
    assert before.independent is not None and after.independent is not None
    assert not torch.allclose(before.independent.model.weight_FK, after.independent.model.weight_FK)


@pytest.mark.parametrize(("count", "changes"), [(60, {}), (160, {"judge_batch": 0})])
def test_a_small_batch_is_not_divided(count: int, changes: dict[str, Any]) -> None:
    rewards, metrics = fit(batch_of(count), **changes)
    assert rewards.independent is None and rewards.judge.votes == count
    assert "reward/independent_votes" not in metrics


def test_both_models_go_on_from_the_last_run(tmp_path: Path) -> None:
    first, _ = fit(batch_of(160))
    first.save(tmp_path / "reward")
    second, metrics = fit(batch_of(160, seed=1), tmp_path)
    assert first.independent is not None and second.independent is not None
    assert second.judge.votes > first.judge.votes
    assert second.independent.model.votes > first.independent.model.votes
    assert "reward/prequential_auroc" in metrics
    small, _ = fit(batch_of(60, seed=2), tmp_path)
    assert small.independent is not None  # a batch that is too small to divide is judged by what earlier ones left
    assert small.independent.model.votes == first.independent.model.votes
    assert small.independent.quality.n == 60


def test_a_judge_counts_once_it_knows_enough() -> None:
    rewards, _ = fit(batch_of(160))
    assert rewards.independent is not None
    assert rewards.independent.counts(TrainerConfig(judge_votes=20, reward_bar=0.0))
    assert not rewards.independent.counts(TrainerConfig(judge_votes=500, reward_bar=0.0))
    assert not rewards.independent.counts(TrainerConfig(judge_votes=20, reward_bar=1.0))


# An encoder as reader


def tiny_bert(folder: Path, *, scores: bool = False) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=48,
        num_labels=3,
    )
    return save_tiny_base(folder, (BertForSequenceClassification if scores else BertModel)(shape))


def policys_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_base(folder))


@pytest.mark.parametrize(("scores", "width"), [(False, 32), (True, 35)])
def test_an_encoder_reads_answers_whole(tmp_path: Path, scores: bool, width: int) -> None:
    encoder = tiny_bert(tmp_path / "bert", scores=scores)
    reader = EncoderReader.load(str(encoder), policys_tokenizer(tmp_path / "base"), tiny_config())
    assert reader.width == len(reader.weight_E) == width
    exchanges = [Exchange((5, 6), (7, 8, 9, END)), Exchange((5, 6), (9,) * 80), Exchange((5, 6), (7, 8, 9, END))]
    features = reader.read(exchanges)
    assert features.shape == (3, width)
    torch.testing.assert_close(features[0], features[2])
    torch.testing.assert_close(features[0], reader.read(exchanges[:1])[0], atol=1e-5, rtol=1e-4)  # padding is not read
    assert not torch.allclose(features[0], features[1])
    assert reader.read([]).shape == (0, width)


def test_a_run_with_an_encoder_fits_heads_on_both(tmp_path: Path) -> None:
    config = tiny_config(reward_encoder=str(tiny_bert(tmp_path / "bert")), judge_batch=0)
    reader = reader_for(tiny_backbone(), policys_tokenizer(tmp_path / "base"), config)
    assert isinstance(reader, Readers) and reader.name.startswith("relevance + encoder ")
    made = rewarding.fit(job(), batch_of(60), tiny_backbone().encode, reader=reader, metrics={}, config=config)
    assert made.judge.whole.weight_EK.shape == (64 + 9 + 32, config.reward_heads)
    made.save(tmp_path / "reward")
    again = rewarding.fit(job(tmp_path), batch_of(60), tiny_backbone().encode, reader=reader, metrics={}, config=config)
    assert again.judge.votes == 120


def test_a_decoder_is_no_encoder(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    with pytest.raises(UnsupportedModel, match="llama, no encoder: give a BERT-class model"):
        EncoderReader.load(str(base), None, tiny_config())


def test_without_one_the_backbone_reads_alone() -> None:
    assert reader_for(tiny_backbone(), None, tiny_config(reward_relevance=False)) is None
