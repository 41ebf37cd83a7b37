"""A FAKE vLLM behind a mock transport, for unit tests of the engine only: no model, made-up log-probabilities.

It keeps names, numbers and tensors as vLLM does (unloading a name leaves the tensors) and can be told to go wrong.
"""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from plaudit_server.engine.artefact import read_safetensors
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.replica import ReplicaClient
from tests.support.engine_folders import VersionFolder, WholeFolder
from tests.support.wires import HttpxWire

BASE = "base"


def logprobs(identity: str, ids: Sequence[int], *, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Log-probability of each id under weights of this identity: a base value plus a change of its own."""
    values = []
    for place, token in enumerate(ids):
        base = -float(_random(BASE, place, token, tuple(ids)).exponential(1.5))
        change = 0.0 if identity == BASE else float(_random(identity, place, token, tuple(ids)).normal(0, 0.1))
        values.append(base + change + noise * float(_random("noise", seed, identity, place, tuple(ids)).normal()))
    return values


def _random(*key: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]))


def weights_of(folder: Path) -> str:
    """Identity of an adapter: its weights' hash."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def whole_digests(folder: Path) -> dict[str, str]:
    """What a worker would say of a whole model of bfloat16."""
    return {
        name: hashlib.sha256(tensor.data).hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_safetensors(path.read_bytes()).items()
    }


def whole_identity(folder: Path) -> str:
    """Identity of a whole model: base where it has no manifest beside it."""
    if not (folder.parent / "manifest.json").exists():
        return BASE
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def make_whole(root: Path, base: Path, name: str, *, parent: AdapterRef | None = None) -> AdapterRef:
    """A version that is a whole model, whose probe says what the stub will answer for its weights."""
    version = WholeFolder(root / name, base, name=name, parent=parent.name if parent else BASE, seed=int(name[1:]))
    version.write()
    before = whole_identity(Path(parent.location) / "model") if parent else BASE
    after = hashlib.sha256((version.folder / "model" / "model.safetensors").read_bytes()).hexdigest()
    version.probe["sequences"] = probe_sequences(before, after)
    return version.write().seal()


def probe_sequences(before: str, after: str) -> list[dict[str, Any]]:
    """Twelve probe texts as the stub scores them under two identities."""
    sequences = []
    for number in range(12):
        prompt, response = [1, number], [100 * number + place for place in range(20)]
        sequences.append(
            {
                "prompt_ids": prompt,
                "response_ids": response,
                "parent_logprobs": logprobs(before, prompt + response)[2:],
                "new_logprobs": logprobs(after, prompt + response)[2:],
            }
        )
    return sequences


def make_version(
    root: Path, base: Path, name: str, *, parent: AdapterRef | None = None, seed: int | None = None
) -> AdapterRef:
    """A version whose probe says what the stub will answer for its weights."""
    version = VersionFolder(
        root / name,
        base,
        name=name,
        parent=parent.name if parent else BASE,
        seed=seed if seed is not None else int(name[1:]),
    ).write()
    before = weights_of(Path(parent.location) / "adapter") if parent else BASE
    after = weights_of(version.folder / "adapter")
    version.probe["sequences"] = probe_sequences(before, after)
    return version.write().seal()


class StubVllm:
    """One server."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.tensors: dict[int, Path] = {}
        self.calls: list[tuple[str, Any]] = []
        self.up = True
        # ways to go wrong
        self.skip_load = False
        self.serve_base = False
        self.load_instead: Path | None = None
        self.noise = 0.02
        self.shift = 0.0
        self.extension = True
        self.model: Path | None = None  # the whole model that was put in the base's place
        self.label = ""
        self.paused = False
        self.cache_stays = False
        self.reload_fails: set[str] = set()  # names of folders that cannot be loaded
        self.keeps_old: set[str] = set()  # names of folders whose loading changes nothing, silently
        self.base: Path | None = None
        self.chat_delay_s = 0.0
        self.may_talk = asyncio.Event()  # while it is not set, chats have begun and do not end
        self.may_talk.set()
        self.broken = 0  # the status that every generation and scoring ends with
        self.blames = "model"  # and the parameter that is to blame
        self.cut: type[httpx.TransportError] | None = None  # how the connection of every chat is lost
        self._numbers = itertools.count(1)

    def client(self) -> ReplicaClient:
        """A client that talks to this stub."""
        return ReplicaClient(wire=HttpxWire(httpx.MockTransport(self._answer)))

    def restart(self) -> None:
        """As if the process had been replaced."""
        self.names, self.tensors = {}, {}
        self.model, self.label, self.paused = None, "", False

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if not self.up:
            raise httpx.ConnectError("down", request=request)
        body = json.loads(request.content) if request.content else None
        self.calls.append((request.url.path, body))
        management = {
            "/health": self._health,
            "/v1/models": self._models,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/collective_rpc": self._rpc,
            "/pause": self._pause,
            "/resume": self._pause,
            "/reset_prefix_cache": lambda _: httpx.Response(200, json={"success": not self.cache_stays}),
        }
        if request.url.path in ("/pause", "/resume"):
            body = request.url.path == "/pause"
        if request.url.path in management:
            return management[request.url.path](body)
        return await self._work(request.url.path, body)

    def _pause(self, paused: Any) -> httpx.Response:
        self.paused = paused
        return httpx.Response(200, json={"status": "ok"})

    def _health(self, _: Any) -> httpx.Response:
        return httpx.Response(200)

    def _models(self, _: Any) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"id": name} for name in (BASE, *self.names)]})

    def _unload(self, body: Any) -> httpx.Response:
        self.names.pop(body["lora_name"], None)
        return httpx.Response(200, text="Success")

    async def _work(self, path: str, body: Any) -> httpx.Response:
        if body["model"] not in (BASE, *self.names):
            return _error(404, f"The model `{body['model']}` does not exist.")
        if path == "/v1/chat/completions":
            await self.may_talk.wait()
            await asyncio.sleep(self.chat_delay_s)
            if self.cut is not None:
                raise self.cut("cut")
        if self.broken:
            return _error(self.broken, "broken", self.blames)
        return self._chat(body) if path == "/v1/chat/completions" else self._complete(body)

    def _load(self, body: Any) -> httpx.Response:
        name = body["lora_name"]
        if name in self.names:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        number = next(self._numbers)
        self.names[name] = number
        if not self.skip_load:
            self.tensors[number] = self.load_instead or Path(body["lora_path"])
        return httpx.Response(200, text="Success")

    def _rpc(self, body: Any) -> httpx.Response:
        if not self.extension:
            return _error(404, "Not Found")
        return httpx.Response(200, json={"results": [self._in_worker(body["method"], body["args"])]})

    def _in_worker(self, method: str, args: list[Any]) -> Any:
        if method in ("plaudit_adapters", "plaudit_forget"):
            for number in args[0] if args else ():
                self.tensors.pop(number, None)
            return sorted(self.tensors)
        if method == "plaudit_weights":
            self.label = args[0] if args else self.label
            return {"label": self.label, "dtype": "bfloat16"}
        if method == "plaudit_reload":
            return self._reload(Path(args[0]), args[1])
        if method == "plaudit_weight_digests":
            return self._weights()
        return self._digests(args[0]) if method == "plaudit_digests" else {"ok": True}

    def _reload(self, folder: Path, label: str) -> dict[str, Any]:
        assert self.paused, "weights must not change under running answers"
        assert not self.names, "adapters of other weights would be read again under their names"
        self.label = "?"
        if folder.parent.name in self.reload_fails or folder.name in self.reload_fails:
            return {"error": "RuntimeError: no"}
        if folder.parent.name not in self.keeps_old:
            self.model = folder
        self.label = label
        return {"label": label}

    def _weights(self) -> dict[str, Any]:
        assert self.model is not None, "nothing was reloaded"
        return {"dtype": "bfloat16", "digests": whole_digests(self.model)}

    def _digests(self, number: int) -> dict[str, Any]:
        folder = self.tensors.get(number)
        if folder is None:
            return {"error": "not here"}
        digests = {}
        for name, tensor in read_safetensors((folder / "adapter_model.safetensors").read_bytes()).items():
            module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
            digests[f"{module}.{side}"] = hashlib.sha256(tensor.data).hexdigest()
        return {"source": "active", "dtype": "bfloat16", "digests": digests, "stray": []}

    def _identity(self, model: str) -> str:
        folder = self.tensors.get(self.names.get(model, 0))
        if folder is None and self.model is not None and not self.serve_base:
            return whole_identity(self.model)
        return BASE if folder is None or self.serve_base else weights_of(folder)

    def _complete(self, body: Any) -> httpx.Response:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]] * body.get("n", 1)
        identity = self._identity(body["model"])
        choices = []
        for index, ids in enumerate(prompts):
            values = [v + self.shift for v in logprobs(identity, ids, noise=self.noise)]
            entries = [None, *({str(t): {"logprob": v}} for t, v in zip(ids[1:], values[1:], strict=True))]
            choice = {"index": index, "text": "ok", "finish_reason": "length", "token_ids": [7, 8]}
            choice |= {"prompt_token_ids": ids, "logprobs": {"token_logprobs": [-0.5, -0.25]}}
            choices.append(choice | {"prompt_logprobs": entries if body.get("prompt_logprobs") is not None else None})
        return httpx.Response(200, json={"choices": choices})

    def _chat(self, body: Any) -> httpx.Response:
        content = [{"token": "a", "logprob": -0.5, "top_logprobs": []}]
        choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}, "token_ids": [7]}
        if not body["stream"]:
            choices = [
                choice | {"index": i, "message": {"role": "assistant", "content": "hi"}}
                for i in range(body.get("n") or 1)
            ]
            answer = {"id": "chatcmpl-1", "model": body["model"], "choices": choices, "usage": {"completion_tokens": 1}}
            return httpx.Response(200, json=answer | {"prompt_token_ids": [1, 2]})
        chunk = {"id": "chatcmpl-1", "model": body["model"], "choices": [choice | {"delta": {"content": "hi"}}]}
        usage = {"id": "chatcmpl-1", "model": body["model"], "choices": [], "usage": {"completion_tokens": 1}}
        events = [json.dumps(chunk | {"prompt_token_ids": [1, 2]}), json.dumps(usage), "[DONE]"]
        return httpx.Response(200, text="".join(f"data: {event}\n\n" for event in events))


def _error(status: int, message: str, param: str = "model") -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "Error", "param": param, "code": status}})
