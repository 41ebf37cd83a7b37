"""Runs inside vLLM's workers: replaces the whole model's weights, and says which weights are resident.

Written against vLLM 0.32 and one tensor-parallel rank. A GPU's worker keeps matrices as parameters, which are hashed
as they lie there. A CPU's worker packs them into handlers of its matrix library and lets the parameters go: there the
identity matrix is sent through each layer, and what comes out is, exactly, the matrix that answers are computed with.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROWS = 512
"""Rows of the identity matrix that go through a layer at once."""


def dtype(worker: Any) -> str | None:
    """In which type this worker computes; None where it does not say."""
    settings = getattr(getattr(worker, "vllm_config", None), "model_config", None)
    found = getattr(settings, "dtype", None)
    return None if found is None else str(found).removeprefix("torch.")


def reload_from(worker: Any, folder: str) -> None:
    """Replace the weights by those of a Hugging Face folder. The path that vLLM has in its settings stays."""
    if not any(Path(folder).glob("*.safetensors")):
        raise ValueError("the folder has no safetensors")
    settings = worker.model_runner.vllm_config.model_config
    kept = settings.model, settings.revision
    try:
        worker.reload_weights(weights_path=folder)
    finally:
        settings.model, settings.revision = kept
    _pack_anew(worker.model_runner.get_model())


def _pack_anew(model: Any) -> None:
    """Output heads that share their matrix with the embeddings: vLLM replaces it and keeps the head's packed copy.

    Seen in vLLM 0.32 on the CPU: the head went on with the old model's matrix (docs/explanation/experiments.md).
    """
    for module in model.modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)


def digests(worker: Any) -> dict[str, Any]:
    """SHA-256 of each matrix and vector by its name in the checkpoint, negative zeros as zeros; and their types."""
    model = worker.model_runner.get_model()
    if worker.vllm_config.parallel_config.tensor_parallel_size > 1:
        raise ValueError("with several tensor-parallel ranks no worker holds a whole matrix")
    packed = getattr(model, "packed_modules_mapping", {})
    found, dtypes = {}, set()
    for name, tensor in _parts(model, packed):
        found[name] = sha256(tensor)
        dtypes.add(str(tensor.dtype).removeprefix("torch."))
    return {"dtype": "/".join(sorted(dtypes)), "digests": found}


def _parts(model: Any, packed: dict[str, list[str]]) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every parameter under its checkpoint's name; what vLLM has joined (q, k, v) is taken apart again.

    Where there is a packed matrix *and* a parameter (embeddings and output heads), both must be the same: one that is
    not comes under a name that nobody expects.
    """
    seen: set[int] = set()
    for name, module in model.named_modules():
        plain = name.replace(".base_layer", "")
        for kind, parameter in module.named_parameters(recurse=False):
            if id(module) in seen or kind.startswith("lora_"):
                continue
            tensor = parameter
            if kind == "weight" and hasattr(module, "cpu_linear"):
                tensor = _computed_with(module)
                if parameter.numel() and not tensor.equal(parameter):
                    yield f"{plain}.{kind} (its parameter)", parameter
            yield from _taken_apart(f"{plain}.{kind}", _without_padding(tensor, module), module, packed)
        seen.add(id(module))


def _without_padding(tensor: "torch.Tensor", module: Any) -> "torch.Tensor":
    """vLLM rounds vocabularies up."""
    rows = getattr(module, "org_vocab_size", None)
    return tensor if rows is None else tensor[:rows]


def _taken_apart(
    name: str, tensor: "torch.Tensor", module: Any, packed: dict[str, list[str]]
) -> Iterator[tuple[str, "torch.Tensor"]]:
    path, _, kind = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    if last not in packed or len(packed[last]) == 1:
        yield name, tensor
        return
    for part, piece in zip(packed[last], tensor.split(list(module.output_sizes)), strict=True):
        yield f"{parent}.{part}.{kind}", piece


def _computed_with(module: Any) -> "torch.Tensor":
    """The matrix (out, in) of a layer on the CPU, out of the kernel itself: the identity sent through it."""
    import torch

    if hasattr(module, "input_size"):
        width, dtype = module.input_size, module.params_dtype
    else:
        width, dtype = module.embedding_dim, module.weight.dtype
    eye = torch.eye(width, dtype=dtype)
    with torch.inference_mode():
        rows = [module.cpu_linear(part, module.weight, None) for part in eye.split(_ROWS)]
    return torch.cat(rows).t()


def sha256(tensor: "torch.Tensor") -> str:
    """Of the bytes in row order; zero has no sign here, because a product with the identity does not keep it."""
    import torch

    raw = (tensor.detach() + 0.0).cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
