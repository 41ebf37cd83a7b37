"""Runs inside vLLM's workers (`--worker-extension-cls`): says which tensors are resident there, and replaces weights.

vLLM mixes this class into its worker class; `/collective_rpc` calls it in every worker. It is written against the
LoRA manager of vLLM 0.26 to 0.33. It never raises: an exception here would end as a 500 without an explanation.
"""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from plaudit_server.engine import worker_weights

if TYPE_CHECKING:
    import torch


class AdapterInspector:
    """Methods that Plaudit calls in each worker. All take and return plain JSON values."""

    def plaudit_ping(self) -> dict[str, Any]:
        """Answers when the engine core and this worker take work."""
        return {"ok": True}

    def plaudit_adapters(self) -> list[int]:
        """vLLM's numbers of the adapters this worker holds."""
        return sorted(self.list_loras())  # type: ignore[attr-defined]  # the worker's own method

    def plaudit_forget(self, numbers: list[int]) -> list[int]:
        """Drop adapters: vLLM's unload endpoint only takes the name away. Returns what is left."""
        for number in numbers:
            self.remove_lora(number)  # type: ignore[attr-defined]  # the worker's own method
        return self.plaudit_adapters()

    def plaudit_weights(self, label: str | None = None) -> dict[str, Any]:
        """Which weights this worker was told to hold, and in which type it computes.

        The label is that of the last reload, empty where there was none.

        Args:
            label: `?` from the beginning of a swap, so that one that is interrupted can be told.
        """
        if label is not None:
            self._plaudit_label = label
        return {"label": getattr(self, "_plaudit_label", ""), "dtype": worker_weights.dtype(self)}

    def plaudit_reload(self, folder: str, label: str) -> dict[str, Any]:
        """Replace the whole model's weights by those in a folder; generation must be paused.

        The label is `?` where it failed. Returns the label, or error.
        """
        self._plaudit_label = "?"
        try:
            worker_weights.reload_from(self, folder)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return self.plaudit_weights(label)

    def plaudit_weight_digests(self) -> dict[str, Any]:
        """SHA-256 of every weight that this worker computes with (`worker_weights.digests`), or error."""
        try:
            return worker_weights.digests(self)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def plaudit_digests(self, number: int, rank: int) -> dict[str, Any]:
        """SHA-256 of an adapter's matrices in this worker.

        With one tensor-parallel rank, of the slot buffers that the kernels read. With several, each worker's
        buffers hold shards, and what is hashed is the worker's own whole copy, from which vLLM cuts its shard.

        Args:
            number: vLLM's number of the adapter.
            rank: the adapter's rank; buffers are as wide as the largest rank allowed.

        Returns:
            source: `active` or `cached`; dtype; digests by `<module>.A|B`; stray: places that should be zero and
            are not; or error.
        """
        try:
            manager = self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]
            return _digests(manager, number, rank)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}


def _digests(manager: Any, number: int, rank: int) -> dict[str, Any]:
    adapter = manager.list_adapters().get(number)
    if adapter is None:
        return {"error": f"adapter {number} is not in this worker"}
    sharded = any(getattr(module, "tp_size", 1) > 1 for module in manager.modules.values())
    if sharded:
        matrices, source = _cached(manager, adapter), "cached"
    else:
        slot = manager.lora_index_to_id.index(number)
        matrices, source = _active(manager, slot, rank), "active"
    digests, stray, dtypes = {}, [], set()
    for key, matrix, rest_is_zero in matrices:
        if not rest_is_zero:
            stray.append(key)
        if matrix is not None:
            digests[key] = _sha256(matrix)
            dtypes.add(str(matrix.dtype).removeprefix("torch."))
    return {"source": source, "dtype": "/".join(sorted(dtypes)), "digests": digests, "stray": stray}


Matrix = tuple[str, "torch.Tensor | None", bool]
"""Its key, the matrix (None where this module has no adapter), and whether all around it is zero."""


def _active(manager: Any, slot: int, rank: int) -> Iterator[Matrix]:
    """What the kernels read: `lora_a_stacked[part][slot, 0, rank, in]`, `lora_b_stacked[part][slot, 0, out, rank]`."""
    for name, module in manager.modules.items():
        for part, a_slots, b_slots in zip(
            _parts(manager, name), module.lora_a_stacked, module.lora_b_stacked, strict=True
        ):
            a, b = a_slots[slot, 0], b_slots[slot, 0]
            if not a.any() and not b.any():
                continue
            yield f"{part}.A", a[:rank], not bool(a[rank:].any())
            yield f"{part}.B", b[:, :rank], not bool(b[:, rank:].any())


def _cached(manager: Any, adapter: Any) -> Iterator[Matrix]:
    """The whole matrices a worker keeps beside the slots, unpacked."""
    for name in manager.modules:
        weights = adapter.get_lora(name)
        if weights is None:
            continue
        packed = isinstance(weights.lora_a, list)
        sides = zip(weights.lora_a, weights.lora_b, strict=True) if packed else [(weights.lora_a, weights.lora_b)]
        for part, (a, b) in zip(_parts(manager, name), sides, strict=True):
            yield f"{part}.A", a, True
            yield f"{part}.B", b, True


def _parts(manager: Any, name: str) -> list[str]:
    """The checkpoint's modules that vLLM packed into this one: q, k, v or gate, up; itself where nothing is packed."""
    return manager.packed_modules.get(name) or [name]


def _sha256(matrix: "torch.Tensor") -> str:
    import torch

    raw = matrix.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
