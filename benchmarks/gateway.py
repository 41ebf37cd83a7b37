"""What the gateway costs: CPU, added latency, memory, beside a bare passthrough and three peers, on a mock of vLLM.

    python -m benchmarks.gateway                  # every arm, 5 rounds; about 10 minutes, on an idle machine
    python -m benchmarks.gateway --quick          # 1 short round: does it run?
    python -m benchmarks.gateway --arms direct,ours,bare
    python -m benchmarks.gateway --no-write

Arms, all up at once and asked in turns, in an order that rotates with every round:

    direct       the load speaks to the mock
    ours         `python -m plaudit_server serve`, VllmEngine on the mock by PLAUDIT_ENGINE_URLS (a Unix socket): keys,
                 sticky routing (`user`), token ids and log-probabilities asked of the engine, taken out of the
                 answer and written to SQLite with a full sync
    bare         FastAPI and aiohttp handing bytes on: no key, nothing kept
    litellm      LiteLLM's proxy 1.100.0, no database, no key
    vllm_router  vllm-router 0.1.17 (Rust), no key
    tensorzero   TensorZero 2026.6.0's embedded gateway (Rust in a Python process), observability off

Kinds of work: `request` (64 tokens in one piece), `stream` (64 chunks that the mock writes one after another without a
pause, so that some arrive together) and `paced` (64 chunks 2 ms apart: each arrives alone, as from a real engine).
Ours asks the mock for ids and log-probabilities, so its chunks are five times as long as the peers'.

CPU is utime + stime of the gateway's process and its children, read before and 0.4 s after each phase, so that work
put off is counted: with 8 clients in closed loop (`cpu_ms_*`) and with one (`alone_*`). Latency is by one client;
`added` is the difference to `direct` of the same quantile. Memory is the resident size after the last round.

The peers are installed once, each into an environment of its own below data/bench/gateway (requirements/peer-*.txt);
one that cannot be installed or does not answer is skipped with a line that says so.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.report import ROOT, machine, write_result

PEERS = ROOT / "benchmarks" / "peers"
ARMS = ("direct", "ours", "bare", "litellm", "vllm_router", "tensorzero")
KINDS = ("request", "stream", "paced")
PACE_MS = 2.0
BUSY_CLIENTS = 8
SETTLED_S = 0.4
PHASE_S = 180
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant that answers in one paragraph."},
    {"role": "user", "content": "Explain how a loop that learns from votes keeps each answer's version apart."},
]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("PLAUDIT_DATA", "data"))
    parser.add_argument("--work", type=Path, default=default / "bench" / "gateway", help="peers' environments, logs")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="of one phase; streams: a quarter of it")
    parser.add_argument("--quick", action="store_true", help="1 round of 200")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    args = parser.parse_args(given)
    if args.quick:
        args.rounds, args.requests = 1, min(args.requests, 200)
    return args


# Arms


@dataclass
class Arm:
    """One way to the mocks. Ports, processes and keys by the mock that stands behind; no processes: straight to it."""

    name: str
    ports: dict[str, int]
    processes: dict[str, psutil.Process] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    keys: dict[str, str] = field(default_factory=dict)
    model: str = "base"
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memory_mib: float = 0.0


class Skip(Exception):
    """The arm cannot run here; the message says why."""


class Bench:
    """Starts everything and ends it again."""

    def __init__(self, work: Path, stack: contextlib.ExitStack) -> None:
        self.work = work
        self.stack = stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plaudit-gateway-")))
        self.mocks = {"fast": self._mock("fast", 0.0), "paced": self._mock("paced", PACE_MS)}

    def _mock(self, name: str, pause_ms: float) -> dict[str, Any]:
        uds = self.folder / f"{name}.sock"
        command = [sys.executable, str(PEERS / "mock_engine.py"), f"--uds={uds}", f"--pause-ms={pause_ms}"]
        process = self.start(f"mock-{name}", command, says_ready=True)
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(process.stdout.readline())
        return said | {"uds": uds, "url": f"http://127.0.0.1:{said['port']}"}

    def start(
        self, name: str, command: list[str], *, env: dict[str, str] | None = None, says_ready: bool = False
    ) -> "subprocess.Popen[str]":
        """A process that ends with the benchmark."""
        log = self.stack.enter_context((self.work / f"{name}.log").open("w"))
        process = subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"} | (env or {}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if says_ready else log,
            stderr=log,
            text=True,
        )
        self.stack.callback(_end, process)
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, path: str, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Until it answers 200. Raises Skip where it ends or never does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Skip(f"it ended with status {process.returncode} while starting")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2):
            return
        time.sleep(0.2)
    raise Skip(f"it did not answer within {seconds:g} s")


def both(bench: Bench, arm: Arm, begin: Callable[[str, dict[str, Any], int], "subprocess.Popen[str]"]) -> Arm:
    """One process on the fast mock, and one on the paced one."""
    for name, mock in bench.mocks.items():
        port = free_port()
        process = begin(name, mock, port)
        arm.ports[name] = port
        arm.processes[name] = psutil.Process(process.pid)
    return arm


def direct(bench: Bench) -> Arm:
    """The mock itself."""
    return Arm("direct", {name: mock["port"] for name, mock in bench.mocks.items()})


def ours(bench: Bench) -> Arm:
    """Plaudit, with everything on."""
    model = bench.folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    arm = Arm("ours", {}, model="policy")

    def begin(name: str, mock: dict[str, Any], port: int) -> "subprocess.Popen[str]":
        data = bench.folder / f"ours-{name}"
        data.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith("PLAUDIT_")}
        env |= {"PLAUDIT_DATA": str(data), "PLAUDIT_PORT": str(port), "PLAUDIT_MODEL": str(model)}
        env |= {"PLAUDIT_ENGINE_URLS": f"unix://{mock['uds']}", "PLAUDIT_CONSENT_DEFAULT": "granted"}
        # The limits are counted, as in production, and never reached.
        env |= {f"PLAUDIT_CHATS_PER_MINUTE_{whose}": "100000000" for whose in ("KEY", "USER")}
        process = bench.start(f"ours-{name}", [sys.executable, "-m", "plaudit_server", "serve"], env=env)
        wait_for(port, "/readyz", process)
        arm.keys[name] = make_key(port, (data / "admin.key").read_text().strip())
        return process

    return both(bench, arm, begin)


def make_key(port: int, admin: str) -> str:
    """A key that may chat."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/keys",
        data=json.dumps({"name": f"bench-{secrets.token_hex(3)}", "roles": ["chat"]}).encode(),
        headers={"Authorization": f"Bearer {admin}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        secret: str = json.loads(answer.read())["secret"]
        return secret


def bare(bench: Bench) -> Arm:
    """FastAPI and aiohttp."""

    def begin(name: str, mock: dict[str, Any], port: int) -> "subprocess.Popen[str]":
        command = [sys.executable, str(PEERS / "bare_gateway.py"), f"--upstream={mock['url']}", f"--port={port}"]
        process = bench.start(f"bare-{name}", command)
        wait_for(port, "/healthz", process)
        return process

    return both(bench, Arm("bare", {}), begin)


def environment(bench: Bench, peer: str) -> Path:
    """The `bin` folder of a peer's environment, made where it is missing."""
    folder = bench.work / f"venv-{peer}"
    made = folder / ".complete"
    if not made.exists():
        print(f"making {peer}'s environment (once) …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, "-r", str(ROOT / "requirements" / f"peer-{peer}.txt")],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise Skip(f"it could not be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        made.touch()
    return folder / "bin"


def litellm(bench: Bench) -> Arm:
    """LiteLLM's proxy."""
    programs = environment(bench, "litellm")

    def begin(name: str, mock: dict[str, Any], port: int) -> "subprocess.Popen[str]":
        config = bench.folder / f"litellm-{name}.yaml"
        params = {"model": "hosted_vllm/base", "api_base": f"{mock['url']}/v1", "api_key": "none"}
        config.write_text(json.dumps({"model_list": [{"model_name": "base", "litellm_params": params}]}))
        command = [str(programs / "litellm"), f"--config={config}", "--host=127.0.0.1", f"--port={port}"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
        process = bench.start(f"litellm-{name}", [*command, "--num_workers=1"], env=env)
        wait_for(port, "/health/liveliness", process, 180)
        return process

    return both(bench, Arm("litellm", {}), begin)


def vllm_router(bench: Bench) -> Arm:
    """vllm-router."""
    programs = environment(bench, "vllm-router")

    def begin(name: str, mock: dict[str, Any], port: int) -> "subprocess.Popen[str]":
        command = [str(programs / "vllm-router"), "--host=127.0.0.1", f"--port={port}", "--log-level=error"]
        command += ["--worker-urls", mock["url"], "--policy=round_robin", f"--prometheus-port={free_port()}"]
        process = bench.start(f"vllm_router-{name}", command)
        wait_for(port, "/health", process)
        return process

    return both(bench, Arm("vllm_router", {}), begin)


def tensorzero(bench: Bench) -> Arm:
    """TensorZero, embedded."""
    programs = environment(bench, "tensorzero")
    arm = Arm("tensorzero", {}, path="/openai/v1/chat/completions", model="tensorzero::model_name::mock")
    for name, mock in bench.mocks.items():
        folder = bench.folder / f"tensorzero-{name}"
        folder.mkdir()
        command = [str(programs / "python"), str(PEERS / "tensorzero_gateway.py"), f"--upstream={mock['url']}"]
        env = {"RUST_LOG": "error"}
        process = bench.start(f"tensorzero-{name}", [*command, f"--folder={folder}"], env=env)
        until = time.monotonic() + 60
        while not (folder / "address").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise Skip(f"it did not start (see {bench.work}/tensorzero-{name}.log)")
            time.sleep(0.1)
        arm.ports[name] = urlsplit((folder / "address").read_text()).port or 0
        arm.processes[name] = psutil.Process(process.pid)
    return arm


MAKERS: dict[str, Callable[[Bench], Arm]] = {
    "direct": direct,
    "ours": ours,
    "bare": bare,
    "litellm": litellm,
    "vllm_router": vllm_router,
    "tensorzero": tensorzero,
}


# Measuring


def body(arm: Arm, kind: str) -> str:
    """What is asked. `user` is who sticks to an arm of a rollout; `direct` is asked as our server asks."""
    asked: dict[str, Any] = {"model": arm.model, "messages": MESSAGES, "max_tokens": 64, "user": "user-17"}
    if kind != "request":
        asked |= {"stream": True}
    return json.dumps(asked)


def cpu_s(process: psutil.Process | None) -> float:
    """Seconds of processor time used so far, children included."""
    total = 0.0
    for each in [] if process is None else [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


def phase(arm: Arm, kind: str, clients: int, count: int) -> dict[str, Any]:
    """One arm, one kind of work. Raises Skip where an answer is not right."""
    mock = "paced" if kind == "paced" else "fast"
    command = [sys.executable, str(PEERS / "gateway_load.py"), f"--port={arm.ports[mock]}", f"--path={arm.path}"]
    command += [f"--key={arm.keys.get(mock, 'none')}", f"--body={body(arm, kind)}"]
    process = arm.processes.get(mock)
    before = cpu_s(process)
    command += [f"--clients={clients}", f"--count={count}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PHASE_S)
    except subprocess.TimeoutExpired:
        raise Skip(f"{count} {kind}s by {clients} clients took longer than {PHASE_S} s") from None
    time.sleep(SETTLED_S)
    used = cpu_s(process) - before
    if done.returncode:
        raise Skip(f"the load failed: {done.stderr.strip().splitlines()[-1]}")
    said: dict[str, Any] = json.loads(done.stdout)
    if said["failed"]:
        raise Skip(f"{said['failed']} of {count} {kind}s failed: {said['sample'][:200]!r}")
    said["cpu_ms"] = used * 1000 / count
    return said


def one_round(arm: Arm, kinds: Sequence[str], requests: int) -> None:
    """Every kind of work, with many clients for the CPU and with one for the latency."""
    for kind in kinds:
        count = requests if kind == "request" else max(64, requests // 4)
        arm.samples.setdefault(f"{kind}_busy", []).append(phase(arm, kind, BUSY_CLIENTS, count))
        alone = count if kind != "paced" else max(20, count // 10)
        arm.samples.setdefault(f"{kind}_alone", []).append(phase(arm, kind, 1, alone))


def measure(arms: list[Arm], args: argparse.Namespace) -> None:
    """All rounds, in turns. The first requests warm everything up and are not counted."""
    kinds = args.kinds.split(",")
    for number in range(-1, args.rounds):
        for turn in range(len(arms)):
            arm = arms[(turn + max(0, number)) % len(arms)]
            if arm.name in SKIPPED:
                continue
            try:
                one_round(arm, kinds, 40 if number < 0 else args.requests)
            except Skip as why:
                skip(arm.name, why)
                continue
            if number < 0:
                arm.samples.clear()
        if number >= 0:
            print(f"round {number + 1} of {args.rounds} done", flush=True)
    for arm in arms:
        family = [p for name, top in arm.processes.items() if name == "fast" for p in family_of(top)]
        arm.memory_mib = sum(each.memory_info().rss for each in family) / 2**20


def family_of(top: psutil.Process) -> list[psutil.Process]:
    """A process and its children."""
    return [top, *top.children(recursive=True)] if top.is_running() else []


SKIPPED: dict[str, str] = {}


def skip(name: str, why: Exception) -> None:
    """Say that an arm is left out, and remember it for the result."""
    SKIPPED[name] = str(why)
    print(f"{name} is skipped: {why}", flush=True)


# Figures


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest-rank quantile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def pooled(arm: Arm, name: str, what: str) -> list[float]:
    """A measurement of all rounds together."""
    return [value for sample in arm.samples.get(name, []) for value in sample[what]]


def figures_of_arm(arm: Arm, straight: Arm) -> dict[str, Any]:
    """One arm's figures. CPU: median over rounds, with the lowest and highest."""
    found: dict[str, Any] = {"memory_mib": round(arm.memory_mib, 1)}
    for kind in KINDS:
        for load, prefix in (("busy", "cpu_ms"), ("alone", "alone_cpu_ms")):
            rounds = [sample["cpu_ms"] for sample in arm.samples.get(f"{kind}_{load}", [])]
            if rounds and arm is not straight:
                found[f"{prefix}_{kind}"] = round(statistics.median(rounds), 4)
                found[f"{prefix}_{kind}_range"] = [round(min(rounds), 4), round(max(rounds), 4)]
        busy = arm.samples.get(f"{kind}_busy", [])
        if busy:
            found[f"per_s_{kind}"] = round(statistics.median(len(s["total"]) / s["wall"] for s in busy), 1)
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            for what, word in (("total", ""), ("first", "first_")):
                ms = [
                    quantile(pooled(each, f"{kind}_alone", what), share) * 1000
                    for each in (arm, straight)
                    if pooled(each, f"{kind}_alone", what)
                ]
                if ms:
                    found[f"{word}{name}_ms_{kind}"] = round(ms[0], 4)
                if len(ms) == 2 and arm is not straight:
                    found[f"added_{word}{name}_ms_{kind}"] = round(ms[0] - ms[1], 4)
    return found


def figures_of(arms: list[Arm], args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is reported."""
    straight = next(arm for arm in arms if arm.name == "direct")
    table = {arm.name: figures_of_arm(arm, straight) for arm in arms if arm.name not in SKIPPED}
    mine, peer = table.get("ours", {}), table.get("litellm", {})
    found: dict[str, Any] = {
        "cpu_ms_request": mine.get("cpu_ms_request"),
        "cpu_ms_stream": mine.get("cpu_ms_stream"),
        "cpu_ms_stream_paced": mine.get("cpu_ms_paced"),
        "added_p50_ms": mine.get("added_p50_ms_request"),
        "added_first_p50_ms": mine.get("added_first_p50_ms_stream"),
    }
    if mine and peer:
        ratios = {kind: round(peer[f"cpu_ms_{kind}"] / mine[f"cpu_ms_{kind}"], 2) for kind in args.kinds.split(",")}
        found |= {"litellm_cpu_ratio": min(ratios.values()), "litellm_cpu_ratio_by_kind": ratios}
    settings = {"rounds": args.rounds, "requests": args.requests, "clients": BUSY_CLIENTS, "pace_ms": PACE_MS}
    return found | {"arms": table, "skipped": SKIPPED, "settings": settings}


COLUMNS = (
    ("cpu_ms_request", "CPU ms/request"),
    ("cpu_ms_stream", "CPU ms/stream"),
    ("cpu_ms_paced", "CPU ms/paced"),
    ("alone_cpu_ms_request", "… 1 client"),
    ("added_p50_ms_request", "+p50 ms"),
    ("added_p99_ms_request", "+p99 ms"),
    ("added_first_p50_ms_stream", "+first p50"),
    ("added_first_p99_ms_stream", "+first p99"),
    ("per_s_request", "requests/s"),
    ("memory_mib", "MiB"),
)


def show(figures: dict[str, Any]) -> None:
    """The table."""
    box = machine()
    print(f"\n{box['processor']}, {box['cores']} cores, {box['memory_gib']} GiB; {figures['settings']}\n")
    print(f"{'':12}" + "".join(f"{title:>15}" for _, title in COLUMNS))
    for name, row in figures["arms"].items():
        cells = [f"{row[key]:15.2f}" if key in row else f"{'-':>15}" for key, _ in COLUMNS]
        print(f"{name:12}" + "".join(cells))
    for name, why in figures["skipped"].items():
        print(f"{name}: skipped, {why}")
    print("\naims: ≤ 1.0 ms CPU a request, ≤ 2.0 ms a stream, added p50 ≤ 1 ms, ≥ 8 times less CPU than LiteLLM")
    print({name: value for name, value in figures.items() if name not in ("arms", "settings", "skipped")})


def started(bench: Bench, wanted: Sequence[str]) -> Iterator[Arm]:
    """The arms that can run here."""
    for name in wanted:
        try:
            yield MAKERS[name](bench)
        except Skip as why:
            skip(name, why)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    args = arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended too
    args.work = args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = list(dict.fromkeys(["direct", *args.arms.split(",")]))
    with contextlib.ExitStack() as stack:
        bench = Bench(args.work, stack)
        arms = list(started(bench, wanted))
        measure(arms, args)
        figures = figures_of(arms, args)
    show(figures)
    if not args.no_write and not args.quick:
        print(f"written: {write_result('gateway', figures).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
