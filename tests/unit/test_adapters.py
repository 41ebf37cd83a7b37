"""A saved policy is what PEFT loads, to the bit, and its probe tells it from its parent."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from plaudit_trainer import adapters
from plaudit_trainer.models import POLICY, REFERENCE, Exchange
from tests.support.tiny_models import stir, tiny_backbone, tiny_config, tiny_llama

EXCHANGES = [Exchange((5, 6, 7), tuple(range(8, 20))), Exchange((5,), (10, 2, 2, 11))]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    backbone = tiny_backbone(cut=2)
    stir(backbone, POLICY)
    adapters.round_to_stored(backbone, POLICY)
    adapters.save(backbone, POLICY, tmp_path / "adapter", "tiny")
    return tmp_path / "adapter"


def test_peft_loads_it_and_gives_the_same_logits(saved: Path) -> None:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(tiny_llama(), saved).eval()
    backbone = tiny_backbone(cut=2)
    adapters.write_into(backbone, POLICY, adapters.read_weights(saved))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), backbone.using(POLICY):
        mine, bare = backbone.model(input_ids=ids).logits, tiny_llama()(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, mine, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mine, bare, atol=0.1)


def test_it_is_bfloat16_with_scaling_one_and_only_adapted_layers(saved: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert config["layers_to_transform"] == [2, 3]
    with safe_open(saved / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {str(file.get_tensor(n).dtype) for n in names} == {"torch.bfloat16"}
    assert len(names) == 2 * 7 * 2
    assert all(n.startswith("base_model.model.model.layers.") for n in names)
    assert not any(".layers.0." in n or ".layers.1." in n for n in names)


def test_rounding_first_makes_reading_exact(saved: Path) -> None:
    backbone = tiny_backbone(cut=2)
    stir(backbone, POLICY)
    unrounded = {n: w.clone() for n, w in backbone.adapter(POLICY).items()}
    adapters.round_to_stored(backbone, POLICY)
    stored = adapters.read_weights(saved)
    for name, weight in backbone.adapter(POLICY).items():
        assert torch.equal(stored[name], weight)
    assert any(not torch.equal(unrounded[n], stored[n]) for n in stored)


def test_an_adapter_of_another_shape_is_refused(saved: Path) -> None:
    with pytest.raises(adapters.MalformedAdapter, match="does not fit"):
        adapters.write_into(tiny_backbone(cut=2, rank=8), POLICY, adapters.read_weights(saved))
    with pytest.raises(adapters.MalformedAdapter, match="does not fit"):
        adapters.write_into(tiny_backbone(cut=3), POLICY, adapters.read_weights(saved))


def test_a_scaling_other_than_one_is_refused(saved: Path) -> None:
    path = saved / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    with pytest.raises(adapters.MalformedAdapter, match="alpha 8"):
        adapters.read_weights(saved)


def test_a_folder_without_adapter_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(adapters.MalformedAdapter, match="Publish the version again"):
        adapters.read_shape(tmp_path)


def test_the_lowest_layer_is_found(saved: Path) -> None:
    assert adapters.lowest_adapted_layer(adapters.read_weights(saved)) == 2


def test_the_probe_grows_until_the_slope_is_provable() -> None:
    backbone = tiny_backbone()
    exchanges = EXCHANGES * 40
    stir(backbone, POLICY, size=0.1)
    _, easy = adapters.make_probe(backbone, exchanges, tiny_config())
    stir(backbone, POLICY, size=0.02)
    probe, hard = adapters.make_probe(backbone, exchanges, tiny_config())
    assert easy["probe/slope_half_width"] <= 0.1
    assert easy["probe/mean_change"] > hard["probe/mean_change"] > 0
    assert hard["probe/sequences"] > easy["probe/sequences"]
    assert hard["probe/tokens"] == sum(len(s.new_logprobs) for s in probe.sequences)


def test_the_probe_stops_at_its_size_and_says_what_it_can_tell() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY, size=0.001)
    probe, figures = adapters.make_probe(backbone, EXCHANGES * 40, tiny_config(probe_sequences=16))
    assert len(probe.sequences) == 16
    assert figures["probe/slope_half_width"] > 0.1


def test_the_probe_compares_policy_with_reference() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    probe, _ = adapters.make_probe(backbone, EXCHANGES, tiny_config())
    sequence = probe.sequences[0]
    encoded = backbone.encode(EXCHANGES[:1])
    for name, given in ((POLICY, sequence.new_logprobs), (REFERENCE, sequence.parent_logprobs)):
        with backbone.using(name):
            torch.testing.assert_close(backbone.all_logprobs(encoded, [1.0])[0], torch.tensor(given))


def test_a_probe_for_a_bfloat16_engine_carries_the_exact_change_as_its_instrument() -> None:
    backbone = tiny_backbone()
    stir(backbone, POLICY)
    probe, _ = adapters.make_probe(backbone, EXCHANGES, tiny_config(probe_precision="bfloat16"))
    exact, _ = adapters.make_probe(backbone, EXCHANGES, tiny_config(probe_precision="float32"))
    for rough, fine in zip(probe.sequences, exact.sequences, strict=False):
        assert fine.exact_change is None and rough.exact_change is not None
        change = torch.tensor(fine.new_logprobs) - torch.tensor(fine.parent_logprobs)
        torch.testing.assert_close(torch.tensor(rough.exact_change), change, atol=2e-2, rtol=0.2)
        assert rough.new_logprobs != fine.new_logprobs
