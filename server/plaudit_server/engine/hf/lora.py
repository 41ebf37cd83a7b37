"""Adapters resident side by side on one model: each is a pair of small matrices beside every layer it changes."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)

_TENSOR = re.compile(r"^base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight$")


class AdapterRefused(Exception):
    """The folder's adapter does not fit this model, or is not here."""


class _Active:
    """The number of the adapter that the next pass is under; None is the base model."""

    def __init__(self) -> None:
        self.number: int | None = None


class AdaptedLinear(nn.Module):
    """A linear layer plus the active adapter's B·A, where that adapter changes this layer."""

    def __init__(self, base: nn.Module, active: _Active) -> None:
        super().__init__()
        self.base = base
        self.active = active
        self.matrices: dict[int, tuple[Tensor, Tensor]] = {}
        rows, columns = self.weight.shape
        # GPT-2's Conv1D keeps its weight transposed.
        self.out_features, self.in_features = (rows, columns) if isinstance(base, nn.Linear) else (columns, rows)

    @property
    def weight(self) -> Tensor:
        """The layer's own weight: T5 looks at its type."""
        return self.base.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        """Base output plus the active adapter's."""
        out: Tensor = self.base(x)
        found = self.matrices.get(self.active.number) if self.active.number is not None else None
        return out if found is None else out + F.linear(F.linear(x, found[0]), found[1])


class Adapters:
    """What is loaded, by name and by number. A number is never used twice."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._active = _Active()
        self._layers: dict[str, AdaptedLinear] = {}
        self._next = 1
        self.names: dict[str, int] = {}
        self.numbers: set[int] = set()

    def load(self, name: str, folder: Path) -> int:
        """Load a PEFT folder under a name; its number.

        Raises:
            AdapterRefused: the name is taken, or the folder holds something that does not fit.
        """
        if name in self.names:
            raise AdapterRefused(f"an adapter {name} is loaded already")
        pairs = _read(folder)
        layers = {module: self._layer(module, pair) for module, pair in pairs.items()}
        number, self._next = self._next, self._next + 1
        for module, layer in layers.items():
            weight, (a_RI, b_OR) = layer.weight, pairs[module]
            layer.matrices[number] = (a_RI.to(weight), b_OR.to(weight))
        self.names[name] = number
        self.numbers.add(number)
        return number

    def unload(self, name: str) -> None:
        """Take a name and its matrices away; an unknown one is ignored."""
        number = self.names.pop(name, None)
        if number is not None:
            self.forget(number)

    def forget(self, number: int) -> None:
        """Take matrices away."""
        self.numbers.discard(number)
        self.names = {name: held for name, held in self.names.items() if held != number}
        for layer in self._layers.values():
            layer.matrices.pop(number, None)

    def forget_all(self, numbers: Sequence[int]) -> list[int]:
        """Take these away; what is left."""
        for number in numbers:
            self.forget(number)
        return sorted(self.numbers)

    @contextmanager
    def using(self, number: int | None) -> Iterator[None]:
        """Within the block passes are under this adapter; None is the base model.

        Raises:
            AdapterRefused: it is not here. Another model never answers in its place.
        """
        if number is not None and number not in self.numbers:
            raise AdapterRefused(f"adapter {number} is no longer loaded")
        self._active.number = number
        try:
            yield
        finally:
            self._active.number = None

    def digests(self, number: int) -> dict[str, Any]:
        """SHA-256 of the matrices that passes under this number multiply by, in vLLM's worker's words (worker.py)."""
        if number not in self.numbers:
            return {"error": f"adapter {number} is not in this worker"}
        digests, kinds = {}, set()
        for module, layer in self._layers.items():
            for side, matrix in zip("AB", layer.matrices.get(number, ()), strict=False):
                digests[f"{module}.{side}"] = _sha256(matrix)
                kinds.add(str(matrix.dtype).removeprefix("torch."))
        return {"source": "active", "dtype": "/".join(sorted(kinds)), "digests": digests, "stray": []}

    def _layer(self, path: str, pair: tuple[Tensor, Tensor]) -> AdaptedLinear:
        """The layer at this path, wrapped at its first use; the matrices must fit it."""
        layer = self._layers.get(path) or self._wrapped(path)
        a_RI, b_OR = pair
        if a_RI.shape[1] != layer.in_features or b_OR.shape != (layer.out_features, a_RI.shape[0]):
            raise AdapterRefused(f"the adapter's matrices for {path} do not fit that layer")
        return layer

    def _wrapped(self, path: str) -> AdaptedLinear:
        parent, _, child = path.rpartition(".")
        try:
            module = self._model.get_submodule(path)
        except AttributeError as error:
            raise AdapterRefused(f"the base model has no layer {path}") from error
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
            raise AdapterRefused(f"{path} is not a linear layer")
        layer = AdaptedLinear(module, self._active)
        setattr(self._model.get_submodule(parent), child, layer)
        self._layers[path] = layer
        return layer


def _read(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) of each module, the scaling alpha / rank folded into B."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        scale = config["lora_alpha"] / config["r"]
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise AdapterRefused(f"{folder} is not a LoRA adapter: {error!r}") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.match(name)
        if match is None:
            raise AdapterRefused(f"{name} is not the name of a LoRA matrix")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if halves := [module for module, found in sides.items() if len(found) != 2]:
        raise AdapterRefused(f"{halves[0]} has only one of its two LoRA matrices")
    return {module: (found["A"], found["B"] if scale == 1 else found["B"] * scale) for module, found in sides.items()}


def _sha256(matrix: Tensor) -> str:
    raw = matrix.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()
