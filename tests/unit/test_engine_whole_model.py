"""Folders that are whole models, and folders that must not take the base model's place."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plaudit_server.engine.artefact import ArtefactRefused, BaseModel, check_artefact
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.whole_model import check_whole_model, read_base_weights
from tests.support.engine_folders import HIDDEN, VersionFolder, WholeFolder, base_shapes, bf16, make_base, safetensors


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def version(tmp_path: Path, base: Path) -> WholeFolder:
    return WholeFolder(tmp_path / "v1", base).write()


def test_a_whole_model_is_what_its_manifest_says(version: WholeFolder, base: Path) -> None:
    model = check_whole_model(version.seal(), base)
    assert model.name == "v1" and model.parent == "base" and model.label.startswith("v1-")
    assert set(model.tensors) == set(base_shapes()) and model.probe is not None
    raw = version.tensors["model.norm.weight"][2]
    assert model.resident_digests("bfloat16")["model.norm.weight"] == hashlib.sha256(raw).hexdigest()


def test_digests_are_of_the_cast_values_and_zero_has_no_sign(version: WholeFolder, base: Path) -> None:
    values = np.array([0.0, -0.0, 1.5, -2.5, 0, 0, 0, 0], "<f4")
    version.tensors["model.norm.weight"] = ("BF16", (8,), bf16(values))
    model = check_whole_model(version.write().seal(), base)
    expected = hashlib.sha256((values + 0.0).astype("<f4").tobytes()).hexdigest()
    assert model.resident_digests("float32")["model.norm.weight"] == expected
    with pytest.raises(ArtefactRefused, match="computes in int8"):
        model.resident_digests("int8")


def test_the_base_model_can_be_gone_back_to(base: Path) -> None:
    model = read_base_weights(base)
    assert model.name == "base" and model.probe is None and set(model.tensors) == set(base_shapes())


def other_shape(version: WholeFolder) -> None:
    version.tensors["model.norm.weight"] = ("BF16", (4,), bytes(8))
    version.write()


def one_more(version: WholeFolder) -> None:
    version.tensors["model.layers.9.mlp.up_proj.weight"] = ("BF16", (2, 2), bytes(8))
    version.write()


def one_less(version: WholeFolder) -> None:
    del version.tensors["model.norm.weight"]
    version.write()


def infinite(version: WholeFolder) -> None:
    version.tensors["model.norm.weight"] = ("F32", (8,), np.full(8, np.inf, "<f4").tobytes())
    version.write()


def another_type(version: WholeFolder) -> None:
    version.tensors["model.norm.weight"] = ("I8", (8,), bytes(8))
    version.write()


def another_architecture(version: WholeFolder) -> None:
    version.config["num_hidden_layers"] = 99
    version.write()


def pickle(version: WholeFolder) -> None:
    (version.folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def code(version: WholeFolder) -> None:
    (version.folder / "model" / "modeling_llama.py").write_text("import os")


def link(version: WholeFolder) -> None:
    (version.folder / "model" / "config.json").unlink()
    (version.folder / "model" / "config.json").symlink_to("/etc/hostname")


def another_tokenizer(version: WholeFolder) -> None:
    for folder, vocabulary in ((version.base, {"a": 0}), (version.folder / "model", {"a": 1})):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


def another_template(version: WholeFolder) -> None:
    (version.base / "chat_template.jinja").write_text("{{ one }}")
    (version.folder / "model" / "chat_template.jinja").write_text("{{ two }}")


def other_tensors_in_manifest(version: WholeFolder) -> None:
    version.manifest["tensors"] = {}


def no_model(version: WholeFolder) -> None:
    (version.folder / "model" / "model.safetensors").unlink()


def no_config(version: WholeFolder) -> None:
    (version.folder / "model" / "config.json").unlink()


def another_base(version: WholeFolder) -> None:
    version.manifest["base_fingerprint"] = "0" * 64


def an_adapter(version: WholeFolder) -> None:
    version.manifest |= {"kind": "adapter", "lora": {"rank": 2, "alpha": 2, "target_modules": []}}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (other_shape, "model.norm.weight has shape .4., the base model's has .8."),
        (one_more, "layers.9.mlp.up_proj.weight is in one of"),
        (one_less, "model.norm.weight is in one of"),
        (infinite, "NaN or infinity"),
        (another_type, "has type I8"),
        (another_architecture, "differs from the base model's in num_hidden_layers"),
        (pickle, "pytorch_model.bin does not belong in a model"),
        (code, "modeling_llama.py does not belong in a model"),
        (link, "symbolic link"),
        (another_tokenizer, "tokenizer is not the base model's"),
        (another_template, "chat template is not the base model's"),
        (other_tensors_in_manifest, "not those in manifest.json"),
        (no_model, "has no safetensors"),
        (no_config, "does not list model/config.json"),
        (another_base, "another base model"),
        (an_adapter, "another kind of version"),
    ],
)
def test_what_is_refused(version: WholeFolder, base: Path, damage: Callable[[WholeFolder], None], reason: str) -> None:
    damage(version)
    with pytest.raises(ArtefactRefused, match=reason):
        check_whole_model(version.seal(), base)


def test_a_file_that_changed_after_the_manifest(version: WholeFolder, base: Path) -> None:
    ref = version.seal()
    version.tensors["model.norm.weight"] = ("BF16", (8,), bytes(16))
    (version.folder / "model/model.safetensors").write_bytes(safetensors(version.tensors))
    with pytest.raises(ArtefactRefused, match=r"model.safetensors is not what the manifest says"):
        check_whole_model(ref, base)


def test_a_file_that_the_manifest_does_not_list(version: WholeFolder, base: Path) -> None:
    ref = version.seal()
    (version.folder / "model" / "extra.json").write_text("{}")
    with pytest.raises(ArtefactRefused, match=r"model/extra.json is not in manifest.json"):
        check_whole_model(ref, base)


def test_a_tied_head_may_be_left_out_or_repeated(version: WholeFolder, base: Path) -> None:
    del version.tensors["lm_head.weight"]
    assert "lm_head.weight" not in check_whole_model(version.write().seal(), base).tensors


def test_a_whole_model_is_no_adapter(version: WholeFolder, base: Path, tmp_path: Path) -> None:
    ref: Any = VersionFolder(tmp_path / "v2", base, name="v2").write().seal()
    as_whole = AdapterRef(ref.name, ref.parent, ref.location, ref.manifest_sha256, "full")
    with pytest.raises(ArtefactRefused, match="another kind"):
        check_whole_model(as_whole, base)
    whole = version.seal()
    as_adapter = AdapterRef(whole.name, whole.parent, whole.location, whole.manifest_sha256)
    with pytest.raises(ArtefactRefused, match=r"another base|another kind"):
        check_artefact(as_adapter, BaseModel("0" * 64, {}), max_rank=HIDDEN)
