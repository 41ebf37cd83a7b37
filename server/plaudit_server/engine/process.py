"""vLLM's own server as a child: how it is started, what it is told, and how it is ended with everything it made.

`lifeline.py` stands between the server and vLLM, so that no way of ending the server leaves an engine behind.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plaudit_server.engine.artefact import ArtefactRefused, read_base
from plaudit_server.engine.processor import count_cores, count_memory_nodes
from plaudit_server.settings import Settings

Device = Literal["cpu", "gpu"]

SPARE_SLOTS = 2
"""Adapter slots beyond `engine_max_loras`. One for a candidate's parent, which may have to be loaded beside it for the
probe. The last one stays empty for ever, because vLLM's own CPU functions apply it to tokens without an adapter."""

CPU_STEP_TOKENS = 128
"""What one step of an engine on the CPU may hold. No stream goes on before a step ends, and vLLM's own 2,048 make a
step of seconds. Not below `--max-num-seqs`, which is 128 there."""

_LIFELINE = Path(__file__).with_name("lifeline.py")
_WORKER_EXTENSION = "plaudit_server.engine.worker.AdapterInspector"
_STOP_TIMEOUT_S = 15.0
_LOG_LIMIT_BYTES = 32 << 20
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of vLLM: its command line, environment, and where it will listen."""

    command: list[str]
    environment: dict[str, str]
    socket: Path
    log: Path


Launcher = Callable[[Settings, Path, Path], Launch]
"""(settings, the base model's folder, a private folder) → what to start. It may block."""


def detect_device() -> Device:
    """Which build of vLLM is installed decides: a CPU build cannot drive a GPU, nor the reverse."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return "cpu" if "cpu" in importlib.metadata.version("vllm") else "gpu"
    return "cpu"


def build_launch(
    settings: Settings, base: Path, folder: Path, device: Device, *, target_modules: Sequence[str] = ()
) -> Launch:
    """What to run for these settings.

    Args:
        settings: `engine_*` and `data` are read.
        base: the base model's folder.
        folder: a private folder with a short path: a Unix socket's address has at most 107 bytes.
        device: which build of vLLM is installed.
        target_modules: names of the layers that adapters may change; empty: whatever vLLM supports.
    """
    socket = folder / "engine.sock"
    arguments = _arguments(settings, base, socket, device)
    if device == "cpu" and target_modules:
        arguments += ["--lora-target-modules", *target_modules]
    arguments += shlex.split(settings.engine_args)
    return Launch(
        command=[sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
        environment=_environment(settings, device),
        socket=socket,
        log=settings.data / "logs" / "engine.log",
    )


def launch_vllm(settings: Settings, base: Path, folder: Path) -> Launch:
    """vLLM as the installed build and the base model need it."""
    return build_launch(settings, base, folder, detect_device(), target_modules=read_target_modules(base))


def _arguments(settings: Settings, base: Path, socket: Path, device: Device) -> list[str]:
    slots = str(settings.engine_max_loras + SPARE_SLOTS)
    arguments = ["--uds", str(socket), "--model", str(base), "--served-model-name", "base"]
    arguments += ["--enable-lora", "--max-loras", slots, "--max-cpu-loras", slots]
    arguments += ["--max-lora-rank", str(settings.engine_max_lora_rank)]
    arguments += ["--max-model-len", str(settings.engine_max_model_len)]
    arguments += ["--scheduling-policy", "priority", "--logprobs-mode", "processed_logprobs"]
    # Sampling that a request does not set is the neutral one, so that what is recorded is what happened.
    arguments += ["--generation-config", "vllm"]
    arguments += ["--worker-extension-cls", _WORKER_EXTENSION]
    arguments += ["--disable-uvicorn-access-log"]
    if device == "cpu":
        # In bfloat16 an adapter's contribution that is smaller than half a unit in the last place of the layer's output
        # is rounded away: of a one-step update 22 % was served, of a large one 86 %; in float32 all of it, for a third
        # of the throughput. `engine_args` may say `--dtype bfloat16`.
        arguments += ["--dtype", "float32"]
        arguments += ["--max-num-batched-tokens", str(CPU_STEP_TOKENS)]
    else:
        arguments += ["--gpu-memory-utilization", str(settings.engine_gpu_memory)]
    eager = settings.engine_eager if settings.engine_eager is not None else device == "cpu"
    if eager:
        arguments += ["--enforce-eager"]
    return arguments


def _environment(settings: Settings, device: Device) -> dict[str, str]:
    environment = dict(os.environ)
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_SERVER_DEV_MODE": "1",  # collective_rpc; safe because only we can reach the socket
        "VLLM_LOGGING_COLOR": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.engine_kv_cache_gib)
        environment |= _compute_in_the_core(settings)
    return environment


def _compute_in_the_core(settings: Settings) -> dict[str, str]:
    """Of vLLM's three processes on a CPU, one less: seven seconds of a start, 0.6 GB, and two messages a step.

    vLLM has the model in a process of its own there, because only before a process starts can its threads be counted
    and bound; here they are counted before vLLM starts. Where memory has several nodes, binding is worth more: vLLM's
    way, unless a number is set. Also where `--tensor-parallel-size` asks for several workers: vLLM heeds the variable
    for one only.
    """
    if settings.engine_threads is None and count_memory_nodes() > 1:
        return {}
    threads = settings.engine_threads or max(1, count_cores() - 1)
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)}


def read_target_modules(base: Path) -> list[str]:
    """The base model's adaptable layers; none where its files cannot be read, which vLLM will explain better."""
    try:
        return read_base(base, "").target_modules
    except (ArtefactRefused, OSError):
        return []


class EngineChild:
    """One life of vLLM. Made by `start`, ended by `stop`, or by itself."""

    def __init__(self, process: Process, launch: Launch, log_offset: int) -> None:
        self._process = process
        self.launch = launch
        self._log_offset = log_offset

    @classmethod
    async def start(cls, settings: Settings, base: Path, launcher: Launcher = launch_vllm) -> "EngineChild":
        """Start the engine in a fresh private folder, so that no engine of an earlier life is in its way."""
        folder = Path(tempfile.mkdtemp(prefix="plaudit-"))  # mode 0700
        launch = await asyncio.to_thread(launcher, settings, base, folder)
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(launch.log)
        with launch.log.open("ab") as log:
            offset = log.tell()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(_LIFELINE), str(folder), *launch.command),
                stdin=asyncio.subprocess.PIPE,  # the lifeline: closed by the kernel when this process ends
                stdout=log,
                stderr=log,
                env=launch.environment,
                start_new_session=True,
            )
        return cls(process, launch, offset)

    @property
    def pid(self) -> int:
        """Process id of the lifeline; vLLM is its child."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for its end; the exit status."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it and everything it started; returns when all of it is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()  # vLLM's processes notice and follow (plugin.py)
            await self._process.wait()
        shutil.rmtree(self.launch.socket.parent, ignore_errors=True)

    def last_words(self) -> str:
        """Why it ended, from its log."""
        with self.launch.log.open("rb") as log:
            log.seek(max(self._log_offset, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return telling_lines(log.read().decode("utf-8", "replace"))


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))


_PREFIX = re.compile(r"^(\(\w+ pid=\d+\)\s*)?((ERROR|WARNING|INFO|DEBUG|CRITICAL) \d\d-\d\d [\d:]+ (\[[^\]]*\] )?)?")
_TELLING = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b.*|.*\berror: .*|^Killed\b.*|.*[Nn]o such file.*")
_CONSEQUENCE = "Engine core initialization failed"


def telling_lines(log: str, *, most: int = 3) -> str:
    """The lines of a log that say why, without their prefixes; the last line where none does."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    telling = [line for line in lines if _TELLING.match(line) and _CONSEQUENCE not in line]
    chosen = list(dict.fromkeys(telling))[-most:] or [line for line in lines if line][-1:]
    return " · ".join(chosen) or "it said nothing"
