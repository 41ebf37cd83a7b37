"""What a worker says of the weights it computes with: read out of packed kernels, taken apart, not fooled."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from plaudit_server.engine.worker import AdapterInspector
from plaudit_server.engine.worker_weights import sha256

HIDDEN = 8


class Packed(nn.Module):
    """A linear layer as vLLM's CPU build has it: its parameter is empty, its matrix somewhere in a kernel."""

    def __init__(self, matrix: Tensor, output_sizes: list[int] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dtype=matrix.dtype), requires_grad=False)
        self.input_size, self.params_dtype = matrix.shape[1], matrix.dtype
        self.output_sizes = output_sizes
        self.kernel = matrix.clone()
        self.cpu_linear = lambda x, weight, bias: x @ self.kernel.t()


class Head(nn.Module):
    """An output head that shares its parameter with the embeddings and keeps a packed copy of its own."""

    def __init__(self, embeddings: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.embedding_dim = embeddings, embeddings.shape[1]
        self.quant_method = SimpleNamespace(process_weights_after_loading=lambda module: module.pack())
        self.pack()

    def pack(self) -> None:
        matrix = self.weight.detach().clone()
        self.cpu_linear = lambda x, weight, bias: x @ matrix.t()


class Wrapped(nn.Module):
    """As vLLM wraps what may have adapters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = layer


class Model(nn.Module):
    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj"]}

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        joined = torch.cat([tensors["attn.q_proj.weight"], tensors["attn.k_proj.weight"]])
        self.attn = nn.Module()
        self.attn.qkv_proj = Wrapped(Packed(joined, [HIDDEN, 2]))
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(tensors["norm.weight"].clone())
        self.embed_tokens = nn.Module()
        self.embed_tokens.weight = nn.Parameter(tensors["embed_tokens.weight"].clone())
        self.lm_head = Head(self.embed_tokens.weight)


class Worker(AdapterInspector):
    """What is asked of vLLM's worker."""

    def __init__(self, tensors: dict[str, Tensor], ranks: int = 1) -> None:
        self.model = Model(tensors)
        settings = SimpleNamespace(model="/the/base", revision="main", dtype=torch.float32)
        self.vllm_config = SimpleNamespace(
            model_config=settings, parallel_config=SimpleNamespace(tensor_parallel_size=ranks)
        )
        self.model_runner = SimpleNamespace(vllm_config=self.vllm_config, get_model=lambda: self.model)
        self.next: dict[str, Tensor] = {}
        self.fails = False

    def reload_weights(self, weights_path: str) -> None:
        """As vLLM's: every layer anew, but for the head's packed copy."""
        self.vllm_config.model_config.model = weights_path
        if self.fails:
            raise RuntimeError("no")
        fresh, head = Model(self.next), self.model.lm_head
        self.model.attn, self.model.norm = fresh.attn, fresh.norm
        with torch.no_grad():
            head.weight.copy_(self.next["embed_tokens.weight"])


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"attn.q_proj.weight": (HIDDEN, HIDDEN), "attn.k_proj.weight": (2, HIDDEN), "norm.weight": (HIDDEN,)}
    shapes |= {"embed_tokens.weight": (32, HIDDEN)}
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


def expected(given: dict[str, Tensor]) -> dict[str, str]:
    raw = {name: (tensor + 0.0).view(torch.uint8).numpy().tobytes() for name, tensor in given.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in raw.items()}
    return digests | {"lm_head.weight": digests["embed_tokens.weight"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_matrices_are_read_back_exactly(dtype: torch.dtype) -> None:
    given = tensors(1, dtype)
    given["attn.q_proj.weight"][0, 0] = -0.0
    said = Worker(given).plaudit_weight_digests()
    assert said == {"dtype": str(dtype).removeprefix("torch."), "digests": expected(given)}


def test_one_entry_that_is_off_is_seen() -> None:
    given = tensors(1)
    worker = Worker(given)
    worker.model.attn.qkv_proj.base_layer.kernel[HIDDEN, 3] += 1e-6
    wrong = {k for k, digest in worker.plaudit_weight_digests()["digests"].items() if digest != expected(given)[k]}
    assert wrong == {"attn.k_proj.weight"}


def test_a_reload_packs_the_head_anew_and_leaves_the_settings(tmp_path: Path) -> None:
    worker = Worker(tensors(1))
    worker.next = tensors(2)
    (tmp_path / "model.safetensors").touch()
    assert worker.plaudit_weights() == {"label": "", "dtype": "float32"}
    assert worker.plaudit_reload(str(tmp_path), "v1-abc")["label"] == "v1-abc"
    assert worker.plaudit_weight_digests()["digests"] == expected(worker.next)
    assert worker.vllm_config.model_config.model == "/the/base"


def test_vllms_own_reload_would_keep_the_old_head() -> None:
    worker = Worker(tensors(1))
    worker.next = tensors(2)
    worker.reload_weights("/new")
    digests = worker.plaudit_weight_digests()["digests"]
    assert digests["embed_tokens.weight"] == expected(worker.next)["embed_tokens.weight"]
    assert digests["lm_head.weight"] == expected(tensors(1))["lm_head.weight"]
    assert "lm_head.weight (its parameter)" in digests, "two matrices under one name are a stranger to everybody"


def test_what_goes_wrong_is_said_and_the_label_is_nobodys(tmp_path: Path) -> None:
    worker = Worker(tensors(1))
    assert "no safetensors" in worker.plaudit_reload(str(tmp_path), "v1")["error"]
    (tmp_path / "model.safetensors").touch()
    worker.fails = True
    assert worker.plaudit_reload(str(tmp_path), "v1")["error"] == "RuntimeError: no"
    assert worker.plaudit_weights()["label"] == "?" and worker.vllm_config.model_config.model == "/the/base"
    said: Any = Worker(tensors(1), ranks=2).plaudit_weight_digests()
    assert "tensor-parallel" in said["error"]


def test_a_vocabulary_that_was_rounded_up_is_cut() -> None:
    given = tensors(1)
    worker = Worker(given | {"embed_tokens.weight": torch.cat([given["embed_tokens.weight"], torch.zeros(4, HIDDEN)])})
    worker.model.embed_tokens.org_vocab_size = worker.model.lm_head.org_vocab_size = 32
    assert worker.plaudit_weight_digests()["digests"] == expected(given)


def test_zero_has_no_sign() -> None:
    assert sha256(torch.tensor([0.0, 1.0])) == sha256(torch.tensor([-0.0, 1.0]))
