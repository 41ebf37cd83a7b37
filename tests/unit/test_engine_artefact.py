"""A folder is loaded only if it is exactly the adapter it says it is. Each case is wrong in one way."""

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plaudit.wire.fingerprint import base_fingerprint
from plaudit_server.engine.artefact import (
    ArtefactRefused,
    BaseModel,
    StoredTensor,
    check_artefact,
    convert,
    is_finite,
    read_base,
    read_safetensors,
)
from plaudit_server.engine.base import AdapterRef
from tests.support.engine_folders import HIDDEN, PREFIX, RANK, SHAPES, VersionFolder, bf16, make_base, safetensors

Q = "model.layers.0.self_attn.q_proj"
Q_A = f"{PREFIX}{Q}.lora_A.weight"


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def base(base_folder: Path) -> BaseModel:
    return read_base(base_folder, base_fingerprint(base_folder))


@pytest.fixture
def version(tmp_path: Path, base_folder: Path) -> VersionFolder:
    return VersionFolder(tmp_path / "v1", base_folder)


def test_a_good_folder_is_accepted(version: VersionFolder, base: BaseModel) -> None:
    checked = check_artefact(version.write().seal(), base, max_rank=16)

    assert checked.manifest.version == "v1"
    assert checked.folder.name == "adapter"
    digests = checked.resident_digests("bfloat16")
    assert len(digests) == 2 * len(SHAPES)
    assert digests[f"{Q}.A"] == hashlib.sha256(version.tensors[Q_A][2]).hexdigest()


def test_the_base_model_is_read_without_head_and_embeddings(base: BaseModel) -> None:
    assert dict(base.shapes) == SHAPES
    assert base.target_modules == ["down_proj", "q_proj", "up_proj"]


def _nan(version: VersionFolder) -> None:
    values = np.zeros((RANK, HIDDEN), "<f4")
    values[1, 3] = np.nan
    version.tensors[Q_A] = ("BF16", (RANK, HIDDEN), bf16(values))


def _shape(version: VersionFolder) -> None:
    version.tensors[Q_A] = ("BF16", (RANK, HIDDEN + 1), bytes(2 * RANK * (HIDDEN + 1)))


def _half(version: VersionFolder) -> None:
    del version.tensors[Q_A]


def _head(version: VersionFolder) -> None:
    version.tensors[f"{PREFIX}lm_head.lora_A.weight"] = ("BF16", (RANK, HIDDEN), bytes(2 * RANK * HIDDEN))


def _integers(version: VersionFolder) -> None:
    version.tensors[Q_A] = ("I64", (RANK, HIDDEN), bytes(8 * RANK * HIDDEN))


def _other_name(version: VersionFolder) -> None:
    version.tensors[f"{PREFIX}{Q}.weight"] = version.tensors.pop(Q_A)


def _pickled(version: VersionFolder) -> None:
    version.weights = pickle.dumps({"a": 1})


def _huge_header(version: VersionFolder) -> None:
    version.weights = (1 << 60).to_bytes(8, "little") + b"{}"


def _trailing(version: VersionFolder) -> None:
    version.weights = safetensors(version.tensors) + b"more"


def _config(key: str, value: object) -> Callable[[VersionFolder], None]:
    def change(version: VersionFolder) -> None:
        version.config[key] = value

    return change


def _manifest(key: str, value: object) -> Callable[[VersionFolder], None]:
    def change(version: VersionFolder) -> None:
        version.manifest[key] = value

    return change


def _probe(key: str, value: object) -> Callable[[VersionFolder], None]:
    def change(version: VersionFolder) -> None:
        version.probe["sequences"][0] = version.probe["sequences"][0] | {key: value}

    return change


def _empty_probe(version: VersionFolder) -> None:
    version.probe["sequences"] = []


BEFORE = {
    "NaN or infinity": _nan,
    "has shape": _shape,
    "only one of its two": _half,
    "no linear layer lm_head": _head,
    "BF16, F16 and F32": _integers,
    "not the name of a LoRA matrix": _other_name,
    "is it safetensors": _pickled,
    "longer than the file": _huge_header,
    "belong to no tensor": _trailing,
    "modules_to_save": _config("modules_to_save", ["lm_head"]),
    "use_dora": _config("use_dora", True),
    "rank_pattern": _config("rank_pattern", {"q_proj": 4}),
    "something_new": _config("something_new", 3),
    "trains biases": _config("bias", "all"),
    "not describe a LoRA": _config("peft_type", "IA3"),
    "rank 99": _config("r", 99),
    "fold the scale": _config("lora_alpha", 2 * RANK),
    "no target modules": _config("target_modules", None),
    "alters the base": _config("init_lora_weights", "pissa"),
    "another base model": _manifest("base_fingerprint", "0" * 64),
    "says v9": _manifest("version", "v9"),
    "manifest.json cannot be read": _manifest("files", None),
    "another kind of version than was registered": _manifest("lora", None),
    "does not list": _manifest("files", {}),
    "are not those in manifest.json": _manifest("tensors", {}),
    "probe.json cannot be read": _probe("prompt_ids", "x"),
    "do not match": _probe("new_logprobs", [-1.0]),
    "nothing could be proven": _empty_probe,
}


@pytest.mark.parametrize("says", BEFORE)
def test_wrong_from_the_start(says: str, version: VersionFolder, base: BaseModel) -> None:
    BEFORE[says](version)

    with pytest.raises(ArtefactRefused, match=says):
        check_artefact(version.write().seal(), base, max_rank=16)


def _flip(folder: Path) -> None:
    path = folder / "adapter/adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _remove(folder: Path) -> None:
    (folder / "probe.json").unlink()


def _pickle_beside(folder: Path) -> None:
    (folder / "adapter/adapter_model.bin").write_bytes(b"x")


def _template_beside(folder: Path) -> None:
    (folder / "adapter/chat_template.jinja").write_text("{{ 1 }}")


def _subfolder(folder: Path) -> None:
    (folder / "adapter/more").mkdir()


def _link(folder: Path) -> None:
    path = folder / "adapter/adapter_config.json"
    path.rename(folder / "elsewhere.json")
    path.symlink_to(folder / "elsewhere.json")


def _other_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": "other"}))


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


AFTER = {
    "adapter_model.safetensors is not what the manifest says": _flip,
    "probe.json is missing": _remove,
    "adapter_model.bin does not belong": _pickle_beside,
    "chat_template.jinja does not belong": _template_beside,
    "more does not belong": _subfolder,
    "symbolic link": _link,
    "not the one that was registered": _other_manifest,
    "manifest.json cannot be read": _no_manifest,
}


@pytest.mark.parametrize("says", AFTER)
def test_changed_after_it_was_registered(says: str, version: VersionFolder, base: BaseModel) -> None:
    ref = version.write().seal()
    AFTER[says](version.folder)

    with pytest.raises(ArtefactRefused, match=says):
        check_artefact(ref, base, max_rank=16)


def test_registered_under_another_parent(version: VersionFolder, base: BaseModel) -> None:
    ref = replace(version.write().seal(), parent="v7")

    with pytest.raises(ArtefactRefused, match="v1 from v7 was registered"):
        check_artefact(ref, base, max_rank=16)


def test_a_folder_that_is_not_there(base: BaseModel) -> None:
    ref = AdapterRef(name="v1", parent="base", location="/nonexistent/v1", manifest_sha256="0" * 64)

    with pytest.raises(ArtefactRefused, match="No such file"):
        check_artefact(ref, base, max_rank=16)


def test_a_listed_path_outside_the_folder(version: VersionFolder, base: BaseModel) -> None:
    ref = version.write().seal()
    path = version.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../base/config.json"] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(manifest))

    with pytest.raises(ArtefactRefused, match="outside the version's folder"):
        check_artefact(replace(version.ref(), name=ref.name), base, max_rank=16)


@pytest.mark.parametrize(
    "header", [b"[1]", b"{", b'{"a": {}}', b'{"a": 3}', b'{"a": {"data_offsets": [0, 8]}}', b"[" * 100_000]
)
def test_malformed_headers_are_refused_and_not_crashed_on(header: bytes) -> None:
    with pytest.raises(ArtefactRefused):
        read_safetensors(len(header).to_bytes(8, "little") + header + bytes(8))


def test_overlapping_tensors_are_refused() -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")}).encode()

    with pytest.raises(ArtefactRefused, match="does not lie where"):
        read_safetensors(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_numbers_are_seen_in_every_type(value: float, dtype: str) -> None:
    values = np.array([1.0, value, -0.0], "<f4")
    raw = {"F32": values.tobytes(), "F16": values.astype("<f2").tobytes(), "BF16": bf16(values)}[dtype]
    good = {"F32": values[:1].tobytes(), "F16": values[:1].astype("<f2").tobytes(), "BF16": bf16(values[:1])}[dtype]

    assert not is_finite(StoredTensor(dtype, (3,), memoryview(raw)))
    assert is_finite(StoredTensor(dtype, (1,), memoryview(good)))


def test_casts_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.randint(-6, 5, (10_000,))
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for stored, stored_type in names.items():
        tensor = values.to(stored_type)
        raw = memoryview(tensor.view(torch.uint8).numpy().tobytes())
        for wanted in ("float32", "float16", "bfloat16"):
            cast = tensor.to(getattr(torch, wanted)).view(torch.uint8).numpy().tobytes()
            assert convert(StoredTensor(stored, (10_000,), raw), wanted) == cast, (stored, wanted)
