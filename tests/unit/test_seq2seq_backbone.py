"""Passes over a model with an encoder: against the model's own forward pass, and with nothing seen that is padding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit_trainer import adapters
from plaudit_trainer.architecture import UnsupportedModel, load_base
from plaudit_trainer.models import POLICY, REFERENCE, Exchange
from plaudit_trainer.rollouts import generate_unpublished
from plaudit_trainer.seq2seq import Seq2SeqBackbone, lowest_adapted_layer, stack_depth
from tests.support.tiny_models import stir, tiny_config
from tests.support.tiny_seq2seq import END, PAD, save_tiny_t5, seq2seq_backbone, tiny_bart, tiny_t5

EXCHANGES = [
    Exchange((5, 6, 7, END), (8, 9, END)),
    Exchange((5, END), (10, PAD, END, 11)),  # PAD and END inside: masks must come from lengths, not from ids
    Exchange((12, 13, 14, 15, 16, 17, END), (18,)),
    Exchange((PAD, 20, END), (21, 22)),
]
MODELS = {"t5": tiny_t5, "flan": lambda: tiny_t5(flan=True), "bart": tiny_bart}


def plain_logprobs(model: Any, exchange: Exchange, temperature: float = 1.0) -> torch.Tensor:
    """One answer, no batch, the model's own logits, whole log-softmax: the obvious way."""
    start = model.config.decoder_start_token_id
    logits = model(
        input_ids=torch.tensor([exchange.prompt_ids]),
        decoder_input_ids=torch.tensor([[start, *exchange.response_ids[:-1]]]),
        use_cache=False,
    ).logits[0]
    tokens = torch.tensor(exchange.response_ids)
    return (logits.float() / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("adapter", [None, POLICY])
def test_logprobs_are_those_of_the_plain_model(model: str, cut: int, adapter: str | None) -> None:
    backbone = seq2seq_backbone(MODELS[model](), cut)
    stir(backbone, POLICY)
    with backbone.using(adapter), torch.no_grad():
        got = backbone.all_logprobs(backbone.encode(EXCHANGES), [0.7] * 4)
        for logprobs, exchange in zip(got, EXCHANGES, strict=True):
            torch.testing.assert_close(logprobs, plain_logprobs(backbone.model, exchange, 0.7), atol=1e-4, rtol=1e-4)


def test_an_adapter_changes_something() -> None:
    backbone = seq2seq_backbone()
    stir(backbone, POLICY)
    encoded = backbone.encode(EXCHANGES)
    with backbone.using(POLICY):
        after = torch.cat(backbone.all_logprobs(encoded, [1.0] * 4))
    assert (after - torch.cat(backbone.all_logprobs(encoded, [1.0] * 4))).abs().mean() > 0.01


def test_the_encoder_is_the_trunk_unless_it_is_adapted() -> None:
    frozen, adapted = seq2seq_backbone(cut=2), seq2seq_backbone(cut=1)
    assert frozen.depth == 5 and frozen.encoder_depth == 2
    assert [tuple(e.trunk_TD.shape) for e in frozen.encode(EXCHANGES)] == [(4, 32), (2, 32), (7, 32), (3, 32)]
    assert [e.trunk_TD for e in adapted.encode(EXCHANGES)] == [None] * 4
    assert not any("encoder" in path for path in frozen.linears)
    assert any(path.startswith("encoder.block.1.") for path in adapted.linears)
    assert not any(path.startswith("encoder.block.0.") for path in adapted.linears)


def test_what_is_encoded_belongs_to_no_adapter() -> None:
    backbone = seq2seq_backbone(cut=0)
    stir(backbone, POLICY)
    bare = backbone.encode(EXCHANGES)
    with backbone.using(POLICY):
        under_policy = backbone.encode(EXCHANGES)
    for a, b in zip(bare, under_policy, strict=True):
        torch.testing.assert_close(a.prefix_TF, b.prefix_TF, atol=0, rtol=0)
        torch.testing.assert_close(a.context_D, b.context_D, atol=0, rtol=0)


@pytest.mark.parametrize("cut", [0, 3])
def test_batch_mates_and_token_budget_do_not_matter(cut: int) -> None:
    wide, narrow = seq2seq_backbone(cut=cut), seq2seq_backbone(cut=cut, token_budget=8)
    for name in ("all_logprobs", "encode"):
        for a, b in zip(_outcome(wide, name), _outcome(narrow, name), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def _outcome(backbone: Seq2SeqBackbone, name: str) -> list[torch.Tensor]:
    encoded = backbone.encode(EXCHANGES)
    if name == "encode":
        return [tensor for e in encoded for tensor in (e.prefix_TF, e.context_D)]
    return backbone.all_logprobs(encoded, [1.0] * 4)


@pytest.mark.parametrize("cut", [0, 2])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_gradient_is_autograds_and_reaches_the_active_adapter_alone(cut: int, recomputed: bool) -> None:
    backbone = seq2seq_backbone(cut=cut)
    stir(backbone, POLICY)
    weights = list(backbone.adapter(POLICY).values())
    if recomputed:
        backbone.checkpoint_layers()
    with backbone.using(POLICY):
        backbone.logprobs(backbone.encode(EXCHANGES), [0.7, 1.0, 1.3, 1.0]).square().sum().backward()
        got = [w.grad.clone() for w in weights]
        for w in weights:
            w.grad = None
        parts = [plain_logprobs(backbone.model, e, t) for e, t in zip(EXCHANGES, [0.7, 1.0, 1.3, 1.0], strict=True)]
        torch.cat(parts).square().sum().backward()
    for mine, weight in zip(got, weights, strict=True):
        torch.testing.assert_close(mine, weight.grad, atol=1e-3, rtol=1e-3)
        assert mine.abs().sum() > 0
    assert all(w.grad is None for w in backbone.adapter(REFERENCE).values())
    assert all(p.grad is None for name, p in backbone.model.named_parameters() if "lora" not in name)


def test_dropout_is_off() -> None:
    backbone = seq2seq_backbone(tiny_t5().train())
    encoded = backbone.encode(EXCHANGES)
    first, second = (torch.cat(backbone.all_logprobs(encoded, [1.0] * 4)) for _ in range(2))
    assert torch.equal(first, second)


def test_features_are_running_means_of_the_response_alone() -> None:
    backbone = seq2seq_backbone()
    a, b = backbone.encode([Exchange((5, 6, END), (7, 8, 9)), Exchange((5, 6, END), (7, 8, 30))])
    assert a.prefix_TF.shape == (3, 64)
    torch.testing.assert_close(a.prefix_TF[:2], b.prefix_TF[:2])  # causal: the last token is not known before
    assert not torch.allclose(a.prefix_TF[2], b.prefix_TF[2])
    embedding = backbone.model.get_input_embeddings().weight
    torch.testing.assert_close(a.prefix_TF[2, :32], embedding[[7, 8, 9]].mean(0), atol=1e-5, rtol=1e-5)
    assert a.whole_E.shape == (64,) and not torch.allclose(a.whole_E, b.whole_E)


def test_a_model_that_bends_its_logits_is_refused() -> None:
    model = tiny_bart()
    model.final_logits_bias[0, 9] = 3.0
    with pytest.raises(UnsupportedModel, match="logits"):
        Seq2SeqBackbone(model, 2)


@pytest.mark.parametrize("model", MODELS)
def test_generation_in_a_padded_batch_follows_the_policys_own_distribution(model: str) -> None:
    backbone = seq2seq_backbone(MODELS[model](), cut=0)
    stir(backbone, POLICY)
    prompts = [(5, 6, 7, 8, 9, 10, END), (11, END), (PAD, 12, 13, END)]
    together = generate_unpublished(backbone, prompts, max_new_tokens=8, temperature=1e-4, seed=0)
    alone = [generate_unpublished(backbone, [p], max_new_tokens=8, temperature=1e-4, seed=0)[0] for p in prompts]
    assert together == alone
    assert [e.prompt_ids for e in together] == prompts
    with torch.no_grad(), backbone.using(POLICY):
        for exchange in together:
            first = exchange.response_ids[0]
            best = max(
                range(64), key=lambda t: plain_logprobs(backbone.model, Exchange(exchange.prompt_ids, (t,))).item()
            )
            assert first == best


def test_a_saved_adapter_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    from peft import PeftModel

    backbone = seq2seq_backbone(cut=1)
    stir(backbone, POLICY)
    adapters.round_to_stored(backbone, POLICY)
    shape = adapters.save(backbone, POLICY, tmp_path, "tiny")
    assert shape.target_modules == ["k", "o", "q", "v", "wi", "wo"]
    with backbone.using(POLICY), torch.no_grad():
        ours = backbone.all_logprobs(backbone.encode(EXCHANGES), [1.0] * 4)
    theirs = PeftModel.from_pretrained(tiny_t5(), tmp_path).eval()
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == len(backbone.linears)
    for logprobs, exchange in zip(ours, EXCHANGES, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logprobs, plain_logprobs(theirs, exchange), atol=1e-4, rtol=1e-4)


def test_the_lowest_adapted_layer_counts_the_encoders_below_the_decoders() -> None:
    model = tiny_t5()
    names = ["decoder.block.1.layer.0.SelfAttention.q.lora_A.weight", "decoder.block.2.layer.2.wo.lora_B.weight"]
    assert stack_depth(model) == 5
    assert lowest_adapted_layer(model, dict.fromkeys(names, torch.zeros(1))) == 3
    lower = [*names, "encoder.block.1.layer.0.SelfAttention.q.lora_A.weight"]
    assert lowest_adapted_layer(model, dict.fromkeys(lower, torch.zeros(1))) == 1


def test_a_folder_is_loaded_by_what_its_config_says_and_keeps_its_own_output_matrix(tmp_path: Path) -> None:
    flan = tiny_t5(flan=True)
    loaded = load_base(save_tiny_t5(tmp_path, flan), tiny_config())
    assert type(loaded).__name__ == "T5ForConditionalGeneration"
    torch.testing.assert_close(loaded.get_output_embeddings().weight, flan.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight)
    torch.testing.assert_close(plain_logprobs(loaded, EXCHANGES[0]), plain_logprobs(flan, EXCHANGES[0]))
