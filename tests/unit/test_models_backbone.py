"""Passes over the frozen model: no padding is seen, the cut changes nothing, gradients go where they should."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plaudit_trainer import token_logprobs
from plaudit_trainer.architecture import UnsupportedModel, lowest_layer
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.rollouts import generate_unpublished
from tests.support.tiny_models import END, VOCABULARY, stir, tiny_backbone, tiny_gpt2, tiny_llama

EXCHANGES = [
    Exchange((5, 6, 7), (8, 9, END)),
    Exchange((5,), (10, END, END, 11)),  # END inside the answer: the mask must come from lengths, not from the id
    Exchange((12, 13, 14, 15, 16, 17), (18,)),
    Exchange((END, 20), (21, 22)),
]


def plain_logprobs(model: torch.nn.Module, exchange: Exchange, temperature: float = 1.0) -> torch.Tensor:
    """One answer, no batch, no cut, whole log-softmax: the obvious way."""
    ids = torch.tensor([exchange.prompt_ids + exchange.response_ids])
    logits = model(input_ids=ids).logits[0].float() / temperature
    start = len(exchange.prompt_ids)
    return logits.log_softmax(-1)[torch.arange(start - 1, len(exchange) - 1), ids[0, start:]]


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adapter", [None, POLICY])
def test_logprobs_are_those_of_the_plain_model(model, temperature: float, adapter: str | None) -> None:
    backbone = tiny_backbone(model(), cut=1)
    stir(backbone, POLICY)
    with backbone.using(adapter), torch.no_grad():
        got = backbone.all_logprobs(backbone.encode(EXCHANGES), [temperature] * 4)
        for logprobs, exchange in zip(got, EXCHANGES, strict=True):
            expected = plain_logprobs(backbone.model, exchange, temperature)
            torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_answer_kls_are_those_of_the_whole_distributions(model, reference: str | None) -> None:
    backbone = tiny_backbone(model(), cut=1)
    stir(backbone, POLICY)
    stir(backbone, REFERENCE, 0.2)

    def distributions(adapter: str | None, exchange: Exchange) -> torch.Tensor:
        with backbone.using(adapter), torch.no_grad():
            logits = backbone.model(input_ids=torch.tensor([exchange.prompt_ids + exchange.response_ids])).logits[0]
        return logits[len(exchange.prompt_ids) - 1 : -1].double().softmax(-1)

    got_B = backbone.answer_kls(backbone.encode(EXCHANGES), POLICY, reference)
    for got, exchange in zip(got_B, EXCHANGES, strict=True):
        ours, theirs = distributions(POLICY, exchange), distributions(reference, exchange)
        expected = (ours * (ours / theirs).log()).sum().item()
        assert expected > 0.01
        assert got.item() == pytest.approx(expected, rel=1e-4)


def test_answer_kls_are_the_mean_of_what_drawn_tokens_say_and_steadier() -> None:
    """Log-ratios of tokens drawn from the policy average to the same, with a far larger spread."""
    backbone = tiny_backbone()
    stir(backbone, POLICY, 0.1)
    prompts = [(5 + i % 50, 6, 7) for i in range(2000)]
    drawn = backbone.encode(generate_unpublished(backbone, prompts, max_new_tokens=8, temperature=1.0, seed=0))
    ones = [1.0] * len(drawn)
    with backbone.using(POLICY):
        ours = backbone.all_logprobs(drawn, ones)
    theirs = backbone.all_logprobs(drawn, ones)
    sampled_B = torch.stack([(a - b).sum() for a, b in zip(ours, theirs, strict=True)])
    exact_B = backbone.answer_kls(drawn, POLICY, None)
    error = sampled_B.std().item() / len(drawn) ** 0.5
    assert abs(exact_B.mean().item() - sampled_B.mean().item()) < 4 * error
    assert exact_B.std() < 0.6 * sampled_B.std()


def test_llama_is_cut_and_gpt2_is_run_whole() -> None:
    assert tiny_backbone(tiny_llama()).encode(EXCHANGES)[0].trunk_TD is not None
    assert tiny_backbone(tiny_gpt2(), cut=1).encode(EXCHANGES)[0].trunk_TD is None


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_the_trunk_belongs_to_no_adapter(cut: int) -> None:
    backbone = tiny_backbone(cut=cut)
    stir(backbone, POLICY)
    bare = backbone.encode(EXCHANGES)
    with backbone.using(POLICY):
        under_policy = backbone.encode(EXCHANGES)
    for a, b in zip(bare, under_policy, strict=True):
        torch.testing.assert_close(a.trunk_TD, b.trunk_TD, atol=0, rtol=0)
        torch.testing.assert_close(a.prefix_TF, b.prefix_TF, atol=0, rtol=0)


def test_batch_mates_and_token_budget_do_not_matter() -> None:
    wide, narrow = tiny_backbone(token_budget=4096), tiny_backbone(token_budget=8)
    for a, b in zip(
        wide.all_logprobs(wide.encode(EXCHANGES), [1.0] * 4),
        narrow.all_logprobs(narrow.encode(EXCHANGES), [1.0] * 4),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_buckets_hold_every_row_once_within_the_budget() -> None:
    backbone = tiny_backbone(token_budget=20)
    lengths = [3, 9, 4, 4, 7, 2, 30, 5]
    groups = backbone.buckets(lengths)
    assert sorted(row for group in groups for row in group) == list(range(8))
    assert all(len(g) == 1 or max(lengths[r] for r in g) * len(g) <= 20 for g in groups)


def test_the_token_gradient_is_autograds() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    weights = list(backbone.adapter(POLICY).values())
    with backbone.using(POLICY):
        backbone.logprobs(backbone.encode(EXCHANGES), [0.7, 1.0, 1.3, 1.0]).square().sum().backward()
        got = [w.grad.clone() for w in weights]
        for w in weights:
            w.grad = None
        parts = [plain_logprobs(backbone.model, e, t) for e, t in zip(EXCHANGES, [0.7, 1.0, 1.3, 1.0], strict=True)]
        torch.cat(parts).square().sum().backward()
    for mine, weight in zip(got, weights, strict=True):
        torch.testing.assert_close(mine, weight.grad, atol=1e-4, rtol=1e-4)


def test_gradient_reaches_the_active_adapter_and_nothing_else() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    with backbone.using(POLICY):
        backbone.logprobs(backbone.encode(EXCHANGES), [1.0] * 4).sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in backbone.adapter(POLICY).values())
    assert all(w.grad is None for w in backbone.adapter(REFERENCE).values())
    others = [p for name, p in backbone.model.named_parameters() if "lora" not in name]
    assert others and all(p.grad is None and not p.requires_grad for p in others)


def test_dropout_is_off() -> None:
    model = tiny_gpt2()
    model.train()
    backbone = tiny_backbone(model, cut=0)
    encoded = backbone.encode(EXCHANGES)
    first, second = (torch.cat(backbone.all_logprobs(encoded, [1.0] * 4)) for _ in range(2))
    assert torch.equal(first, second)


def test_features_are_running_means_of_the_response_alone() -> None:
    backbone = tiny_backbone()
    a, b = backbone.encode([Exchange((5, 6), (7, 8, 9)), Exchange((5, 6), (7, 8, 30))])
    assert a.prefix_TF.shape == (3, 64)
    torch.testing.assert_close(a.prefix_TF[:2], b.prefix_TF[:2])  # causal: the last token is not known before
    assert not torch.allclose(a.prefix_TF[2], b.prefix_TF[2])
    embedding = backbone.model.get_input_embeddings().weight
    torch.testing.assert_close(a.prefix_TF[2, :32], embedding[[7, 8, 9]].mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_whole_answers_are_read_two_thirds_up(cut: int) -> None:
    exchanges = [Exchange((5, 6), (7, 8, 9)), Exchange((5, 6, 7), (8,))]
    for encoded, exchange in zip(tiny_backbone(cut=cut).encode(exchanges), exchanges, strict=True):
        ids_1T = torch.tensor([exchange.prompt_ids + exchange.response_ids])
        with torch.no_grad():
            states_TD = tiny_llama()(ids_1T, output_hidden_states=True).hidden_states[3][0]
        response_TD = states_TD[len(exchange.prompt_ids) :]
        expected = torch.cat([response_TD[-1], response_TD.mean(0)])
        torch.testing.assert_close(encoded.whole_E, expected, atol=1e-5, rtol=1e-5)


def test_generation_under_left_padding_follows_the_policys_own_distribution() -> None:
    """Greedy continuations of a padded batch equal those of each prompt alone."""
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    prompts = [(5, 6, 7, 8, 9, 10), (11,), (END, 12, 13)]
    together = generate_unpublished(backbone, prompts, max_new_tokens=8, temperature=1e-4, seed=0)
    alone = [generate_unpublished(backbone, [p], max_new_tokens=8, temperature=1e-4, seed=0)[0] for p in prompts]
    assert together == alone
    assert [e.prompt_ids for e in together] == prompts


def test_the_head_never_sees_a_slice_while_generating() -> None:
    """On a slice PyTorch copies the output matrix once a row: gigabytes for a batch of answers."""
    backbone, dense = tiny_backbone(), []
    head = backbone.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, __: dense.append(args[0].is_contiguous()))
    generate_unpublished(backbone, [(5, 6, 7), (8, 9, 10)], max_new_tokens=3, temperature=1.0, seed=0)
    assert len(dense) == 3 and all(dense)


def test_generation_is_cut_after_the_first_end_and_repeats_with_its_seed() -> None:
    backbone = tiny_backbone()
    prompts = [(5, 6)] * 64
    answers = generate_unpublished(backbone, prompts, max_new_tokens=20, temperature=1.5, seed=1)
    assert all(END not in a.response_ids[:-1] for a in answers)
    assert any(a.response_ids[-1] == END for a in answers)
    assert answers == generate_unpublished(backbone, prompts, max_new_tokens=20, temperature=1.5, seed=1)
    assert answers != generate_unpublished(backbone, prompts, max_new_tokens=20, temperature=1.5, seed=2)


def test_at_least_the_top_layer_is_adapted() -> None:
    assert [lowest_layer(30, s) for s in (1.0, 0.34, 0.001)] == [0, 20, 29]


def test_a_model_that_bends_its_logits_is_refused() -> None:
    model = tiny_llama()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModel, match="changes its logits"):
        Backbone(model, 0)


def test_vocabulary_is_chunked_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    encoded = backbone.encode(EXCHANGES)
    whole = torch.cat(backbone.all_logprobs(encoded, [1.0] * 4))
    monkeypatch.setattr("plaudit_trainer.token_logprobs.VOCABULARY_CHUNK", 3)
    torch.testing.assert_close(torch.cat(backbone.all_logprobs(encoded, [1.0] * 4)), whole)
    assert backbone.unembedding_VD.shape[0] == VOCABULARY


def test_entropies_are_those_of_the_whole_distribution_and_carry_no_gradient() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    with backbone.using(POLICY):
        encoded = backbone.encode(EXCHANGES)
        logprobs, entropies = backbone.logprobs_and_entropies(encoded, [0.7] * 4)
        torch.testing.assert_close(logprobs, backbone.logprobs(encoded, [0.7] * 4))
        expected = []
        for exchange in EXCHANGES:
            ids = torch.tensor([exchange.prompt_ids + exchange.response_ids])
            logits = backbone.model(input_ids=ids).logits[0, len(exchange.prompt_ids) - 1 : -1] / 0.7
            expected.append(torch.distributions.Categorical(logits=logits).entropy())
    torch.testing.assert_close(entropies, torch.cat(expected).detach(), atol=1e-5, rtol=1e-5)
    assert logprobs.requires_grad and not entropies.requires_grad


class NoTensorAbove(TorchDispatchMode):
    """Fails on any tensor with more elements than that."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.largest = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                assert tensor.numel() <= self.elements, f"{func} made {list(tensor.shape)}"
        return result


@pytest.mark.parametrize("gradient", [True, False])
def test_no_tensor_of_batch_times_time_times_vocabulary_exists(gradient: bool) -> None:
    vocabulary = 2048
    backbone = tiny_backbone(tiny_llama(vocabulary=vocabulary))
    answers = [Exchange((5, 6), tuple(range(3, 53)))] * 12
    chunk = token_logprobs.VOCABULARY_CHUNK * vocabulary
    assert sum(len(a.response_ids) for a in answers) * vocabulary > 4 * chunk
    encoded = backbone.encode(answers)
    with NoTensorAbove(chunk) as seen, torch.set_grad_enabled(gradient), backbone.using(POLICY):
        logprobs, _ = backbone.logprobs_and_entropies(encoded, [1.0] * len(answers))
        if gradient:
            logprobs.sum().backward()
        else:
            backbone.all_logprobs(encoded, [1.0] * len(answers))
    assert seen.largest == chunk  # the chunk itself was seen: the mode watches what it should


@pytest.mark.parametrize("cut", [0, 2])
def test_checkpointed_layers_give_the_same_gradients_whatever_is_active_in_the_backward_pass(cut: int) -> None:
    gradients = []
    for checkpointed in (False, True):
        backbone = tiny_backbone(cut=cut)
        stir(backbone, POLICY)
        stir(backbone, REFERENCE, seed=2)
        if checkpointed:
            backbone.checkpoint_layers()
        with backbone.using(POLICY):
            logprobs = backbone.logprobs(backbone.encode(EXCHANGES), [1.0] * 4)
        with backbone.using(REFERENCE):
            logprobs.sum().backward()
        assert all(w.grad is None for w in backbone.adapter(REFERENCE).values())
        gradients.append([w.grad for w in backbone.adapter(POLICY).values()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None and plain.abs().sum() > 0
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept = []
    for checkpointed in (False, True):
        backbone = tiny_backbone(cut=0)
        if checkpointed:
            backbone.checkpoint_layers()
        encoded, sizes = backbone.encode(EXCHANGES), list[int]()
        with (
            backbone.using(POLICY),
            torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t),
        ):
            backbone.logprobs(encoded, [1.0] * 4)
        kept.append(sum(sizes))
    assert kept[1] < 0.2 * kept[0]


def test_a_group_large_enough_to_be_efficient_has_little_padding() -> None:
    backbone = tiny_backbone(token_budget=100_000)
    lengths = [200] * 3 + [40] * 30
    groups = backbone.buckets(lengths)
    assert [len(g) for g in groups] == [3, 30]
    for group in groups:
        padded = max(lengths[r] for r in group) * len(group)
        assert sum(lengths[r] for r in group) >= 0.9 * padded
