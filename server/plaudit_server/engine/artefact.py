"""Is this folder the adapter that its manifest says, and safe to hand to vLLM? Checked before loading, without torch.

Every refusal is an `ArtefactRefused` whose message is one sentence for the operator.
"""

import hashlib
import json
import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plaudit.wire.fingerprint import file_sha256
from plaudit.wire.versions import Manifest, Probe
from plaudit_server.engine.base import AdapterRef

ADAPTER_FOLDER = "adapter"
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_ALLOWED_IN_ADAPTER = {_WEIGHTS, _CONFIG, "README.md"}
_MAX_HEADER_BYTES = 16 << 20
_MAX_JSON_BYTES = 64 << 20
_TENSOR_NAME = re.compile(r"^base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight$")
_NOT_ADAPTED = re.compile(r"(^|\.)(lm_head|wte|wpe|\w*embed\w*)(\.|$)")
_WIDTH = {"BF16": 2, "F16": 2, "F32": 4}

# Keys of adapter_config.json that may have any value: they do not change what vLLM computes.
_FREE_KEYS = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "init_lora_weights"),
    *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size"),
    *("revision", "task_type", "target_modules", "r", "lora_alpha", "peft_type", "bias"),
}
# Named so that a refusal can say what is wrong; any other key must be empty too.
_EMPTY: tuple[object, ...] = (None, False, "", [], {})


class ArtefactRefused(Exception):
    """The folder is not an adapter that may be loaded."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What must be known of the base model to judge an adapter.

    Args:
        fingerprint: as `plaudit.wire.fingerprint` has it.
        shapes: (out, in) features of each linear layer that may be adapted, by module name.
    """

    fingerprint: str
    shapes: Mapping[str, tuple[int, int]]

    @property
    def target_modules(self) -> list[str]:
        """Last parts of the linear layers' names: q_proj, k_proj, ….

        Output head and embeddings are not among them: vLLM's CPU build dies on `prompt_logprobs` of a mixed batch
        when the head may have adapters, and adapting it costs a matrix of the vocabulary's size a token.
        """
        return sorted({module.rpartition(".")[2] for module in self.shapes})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file, as raw bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that may be loaded."""

    manifest: Manifest
    probe: Probe
    folder: Path
    tensors: Mapping[str, StoredTensor]

    @property
    def rank(self) -> int:
        """Of its matrices."""
        assert self.manifest.lora is not None, "it was checked"
        return self.manifest.lora.rank

    def resident_digests(self, dtype: str) -> dict[str, str]:
        """SHA-256 of each tensor's bytes as an engine that computes in `dtype` must hold them.

        Args:
            dtype: bfloat16, float16 or float32, as the workers report it.

        Returns:
            By `<module>.A` and `<module>.B`.
        """
        digests = {}
        for name, tensor in self.tensors.items():
            match = _TENSOR_NAME.match(name)
            assert match is not None, "names were checked"
            key = f"{match['module']}.{match['side']}"
            digests[key] = hashlib.sha256(convert(tensor, dtype)).hexdigest()
        return digests


def check_artefact(ref: AdapterRef, base: BaseModel, *, max_rank: int) -> CheckedAdapter:
    """Check a version's folder.

    Args:
        ref: where it is, and the manifest hash that was registered.
        base: the base model that is served.
        max_rank: largest rank the engine was started for.

    Raises:
        ArtefactRefused: with one sentence saying what is wrong.
    """
    folder = Path(ref.location)
    manifest = read_manifest(folder, ref)
    if manifest.base_fingerprint != base.fingerprint:
        raise ArtefactRefused(f"{ref.name} was trained on another base model than the one served")
    check_files(folder, manifest, {f"{ADAPTER_FOLDER}/{_WEIGHTS}", f"{ADAPTER_FOLDER}/{_CONFIG}", "probe.json"})
    _check_adapter_folder(folder)
    config = read_json(folder / ADAPTER_FOLDER / _CONFIG)
    _check_config(config, manifest, max_rank)
    raw = (folder / ADAPTER_FOLDER / _WEIGHTS).read_bytes()
    if hashlib.sha256(raw).hexdigest() != manifest.files[f"{ADAPTER_FOLDER}/{_WEIGHTS}"].sha256:
        raise ArtefactRefused(f"{ADAPTER_FOLDER}/{_WEIGHTS} changed while it was being checked")
    tensors = read_safetensors(raw)
    assert manifest.lora is not None, "its kind was checked"
    _check_tensors(tensors, manifest, base, rank=manifest.lora.rank)
    return CheckedAdapter(manifest, read_probe(folder), (folder / ADAPTER_FOLDER).resolve(), tensors)


def read_manifest(folder: Path, ref: AdapterRef) -> Manifest:
    """The registered manifest. Raises ArtefactRefused."""
    path = folder / "manifest.json"
    if folder.is_symlink() or path.is_symlink():
        raise ArtefactRefused(f"{ref.name}: symbolic links are not accepted")
    raw = _read(path)
    if hashlib.sha256(raw).hexdigest() != ref.manifest_sha256:
        raise ArtefactRefused(f"manifest.json of {ref.name} is not the one that was registered")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ArtefactRefused(f"manifest.json cannot be read: {_first(error)}") from error
    if (manifest.version, manifest.parent) != (ref.name, ref.parent):
        raise ArtefactRefused(
            f"manifest.json says {manifest.version} from {manifest.parent}, "
            f"but {ref.name} from {ref.parent} was registered"
        )
    if manifest.kind != ref.kind or (manifest.kind == "adapter") != (manifest.lora is not None):
        raise ArtefactRefused(f"manifest.json describes another kind of version than was registered ({ref.kind})")
    return manifest


def check_files(folder: Path, manifest: Manifest, wanted: set[str]) -> None:
    """Those that are wanted are listed, and every listed one is as listed. Raises ArtefactRefused."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ArtefactRefused(f"{path.relative_to(folder)} is a symbolic link; they are not accepted")
    if missing := sorted(wanted - set(manifest.files)):
        raise ArtefactRefused(f"manifest.json does not list {missing[0]}")
    for name, expected in manifest.files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ArtefactRefused(f"manifest.json lists a file outside the version's folder: {name}")
        if not path.is_file():
            raise ArtefactRefused(f"{name} is missing")
        if path.stat().st_size != expected.bytes or file_sha256(path) != expected.sha256:
            raise ArtefactRefused(f"{name} is not what the manifest says (size or SHA-256 differs)")


def _check_adapter_folder(folder: Path) -> None:
    """It holds nothing but what vLLM must read."""
    adapter = folder / ADAPTER_FOLDER
    for path in adapter.rglob("*"):
        if path.name not in _ALLOWED_IN_ADAPTER or path.parent != adapter:
            raise ArtefactRefused(
                f"{path.relative_to(folder)} does not belong in an adapter; only safetensors are loaded"
            )


def _check_config(config: Mapping[str, Any], manifest: Manifest, max_rank: int) -> None:
    if config.get("peft_type") != "LORA":
        raise ArtefactRefused("adapter_config.json does not describe a LoRA adapter")
    if config.get("bias", "none") != "none":
        raise ArtefactRefused("adapter_config.json trains biases, which vLLM does not serve")
    for key, value in config.items():
        if key not in _FREE_KEYS and key != "fan_in_fan_out" and value not in _EMPTY:
            raise ArtefactRefused(f"adapter_config.json sets {key}, which is not accepted")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise ArtefactRefused(f"rank {rank} is not between 1 and {max_rank} (PLAUDIT_ENGINE_MAX_LORA_RANK)")
    if alpha != rank:
        raise ArtefactRefused(f"alpha {alpha} differs from rank {rank}; fold the scale into the B matrices")
    lora = manifest.lora
    if lora is None or lora.rank != rank or lora.alpha != alpha:
        raise ArtefactRefused("rank or alpha in adapter_config.json and in manifest.json differ")
    targets = config.get("target_modules")
    if not isinstance(targets, str | list) or not targets:
        raise ArtefactRefused("adapter_config.json names no target modules")
    if not isinstance(config.get("init_lora_weights", True), bool) and config["init_lora_weights"] != "gaussian":
        raise ArtefactRefused("adapter_config.json has an init_lora_weights that alters the base model")


def _check_tensors(tensors: Mapping[str, StoredTensor], manifest: Manifest, base: BaseModel, *, rank: int) -> None:
    if set(tensors) != set(manifest.tensors):
        raise ArtefactRefused("the tensors in the file are not those in manifest.json")
    if not tensors:
        raise ArtefactRefused("the adapter has no tensors")
    modules: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.match(name)
        if match is None:
            raise ArtefactRefused(f"{name} is not the name of a LoRA matrix of a linear layer")
        modules.setdefault(match["module"], set()).add(match["side"])
        expected = _expected_shape(name, match["module"], match["side"], base, rank=rank)
        if tensor.shape != expected:
            raise ArtefactRefused(f"{name} has shape {list(tensor.shape)}, the base model needs {list(expected)}")
        check_content(name, tensor, manifest)
    if halves := sorted(module for module, sides in modules.items() if len(sides) != 2):
        raise ArtefactRefused(f"{halves[0]} has only one of its two LoRA matrices")


def _expected_shape(name: str, module: str, side: str, base: BaseModel, *, rank: int) -> tuple[int, int]:
    features = base.shapes.get(module)
    if features is None:
        raise ArtefactRefused(f"{name}: the base model has no linear layer {module}")
    return (rank, features[1]) if side == "A" else (features[0], rank)


def check_content(name: str, tensor: StoredTensor, manifest: Manifest) -> None:
    """It is what the manifest says, and finite. Raises ArtefactRefused."""
    expected = manifest.tensors[name]
    if list(tensor.shape) != expected.shape or hashlib.sha256(tensor.data).hexdigest() != expected.sha256:
        raise ArtefactRefused(f"{name} is not what the manifest says (shape or SHA-256 differs)")
    if not is_finite(tensor):
        raise ArtefactRefused(f"{name} contains NaN or infinity")


def read_safetensors(raw: bytes | mmap.mmap) -> dict[str, StoredTensor]:
    """Tensors of a safetensors file: an 8-byte length, a JSON header, and the data without gaps or overlaps."""
    if len(raw) < 8:
        raise ArtefactRefused("the weights file is too short to be safetensors")
    size = int.from_bytes(raw[:8], "little")
    if size > min(_MAX_HEADER_BYTES, len(raw) - 8):
        raise ArtefactRefused("the weights file's header is longer than the file or than is sane; is it safetensors?")
    header = _parse(raw[8 : 8 + size], "the weights file's header")
    header.pop("__metadata__", None)
    data = memoryview(raw)[8 + size :]
    tensors, at = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        tensors[name], at = _read_tensor(name, entry, data, at)
    if at != len(data):
        raise ArtefactRefused("the weights file has bytes that belong to no tensor")
    return tensors


def _begin(entry: Any) -> int:
    try:
        return int(entry["data_offsets"][0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtefactRefused("the weights file's header is malformed") from error


def _read_tensor(name: str, entry: Any, data: memoryview, at: int) -> tuple[StoredTensor, int]:
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
    if dtype not in _WIDTH:
        raise ArtefactRefused(f"{name} has type {dtype}; BF16, F16 and F32 are accepted")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ArtefactRefused(f"{name} has no sane shape")
    end = at + math.prod(shape) * _WIDTH[dtype]
    if list(offsets) != [at, end] or end > len(data):
        raise ArtefactRefused(f"{name} does not lie where the weights file's header says")
    return StoredTensor(dtype, tuple(shape), data[at:end]), end


def is_finite(tensor: StoredTensor) -> bool:
    """Whether no value is NaN or infinite: those have all exponent bits set."""
    if tensor.dtype == "F32":
        bits, exponent = np.frombuffer(tensor.data, "<u4"), np.uint32(0x7F80_0000)
        return not bool(np.any((bits & exponent) == exponent))
    halves = np.frombuffer(tensor.data, "<u2")
    mask = np.uint16(0x7F80 if tensor.dtype == "BF16" else 0x7C00)
    return not bool(np.any((halves & mask) == mask))


def convert(tensor: StoredTensor, dtype: str) -> bytes:
    """The tensor's bytes after a cast to `dtype`, rounded to nearest even as torch does."""
    stored = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[tensor.dtype]
    if stored == dtype:
        return bytes(tensor.data)
    values = _as_float32(tensor)
    if dtype == "float32":
        return values.tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    if dtype == "bfloat16":
        bits = values.view("<u4")
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return rounded.astype("<u2").tobytes()
    raise ArtefactRefused(f"the engine holds adapters as {dtype}, with which they cannot be compared")


def _as_float32(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    if tensor.dtype == "BF16":
        return (np.frombuffer(tensor.data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    return np.frombuffer(tensor.data, "<f2" if tensor.dtype == "F16" else "<f4").astype("<f4")


def read_probe(folder: Path) -> Probe:
    """The probe, if something can be proven by it. Raises ArtefactRefused."""
    try:
        probe = Probe.model_validate_json(_read(folder / "probe.json"))
    except ValidationError as error:
        raise ArtefactRefused(f"probe.json cannot be read: {_first(error)}") from error
    if not probe.sequences:
        raise ArtefactRefused("probe.json has no sequences, so nothing could be proven")
    for number, sequence in enumerate(probe.sequences):
        lengths = {len(sequence.response_ids), len(sequence.parent_logprobs), len(sequence.new_logprobs)}
        if sequence.exact_change is not None:
            lengths.add(len(sequence.exact_change))
        if len(lengths) != 1 or not sequence.response_ids or not sequence.prompt_ids:
            raise ArtefactRefused(f"probe.json: ids and log-probabilities of sequence {number} do not match")
    return probe


def read_base(folder: Path, fingerprint: str) -> BaseModel:
    """The base model's linear layers, from the headers of its safetensors files."""
    config = read_json(folder / "config.json")
    transposed = config.get("model_type") in ("gpt2", "openai-gpt")  # Conv1D keeps (in, out)
    shapes: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, shape in header_shapes(path).items():
            if name.endswith(".weight") and len(shape) == 2 and not _NOT_ADAPTED.search(name):
                shapes[name.removesuffix(".weight")] = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    if transposed:
        shapes |= {f"transformer.{module}": shape for module, shape in shapes.items()}
    return BaseModel(fingerprint, shapes)


def header_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor of a safetensors file. Raises ArtefactRefused."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER_BYTES * 8:
            raise ArtefactRefused(f"{path.name} of the base model is not safetensors")
        header = _parse(file.read(size), path.name)
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ArtefactRefused(f"{path.name} is too large")
        return path.read_bytes()
    except OSError as error:
        raise ArtefactRefused(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a sane size. Raises ArtefactRefused."""
    return _parse(_read(path), path.name)


def _parse(raw: bytes, what: str) -> dict[str, Any]:
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtefactRefused(f"{what} is not JSON") from error
    if not isinstance(parsed, dict):
        raise ArtefactRefused(f"{what} is not a JSON object")
    return parsed


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
