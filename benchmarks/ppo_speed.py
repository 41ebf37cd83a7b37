"""PPO against TRL 1.12.0's PPOTrainer, the last one it had: samples a second, peak memory, and where the time goes.

    python -m benchmarks.ppo_speed                 # the bundled model, 32 answers a step, 3 repetitions
    python -m benchmarks.ppo_speed --quick         # 8 answers, one repetition; a few minutes
    python -m benchmarks.ppo_speed --lora-layers 1 # adapters on all layers instead of the upper third
    python -m benchmarks.ppo_speed --quick --shape tiny   # a tiny random model: does it run?

Both sides get the same model in the same precision, prompts, answers (token for token), batch, minibatch, epochs,
threads, and LoRA adapters of the same rank on the same linear layers. They run in turns, each in a process of its own,
in alternating order; the first step of a process warms up and is not counted.

    update   from given answers to a changed adapter: log-probabilities, values, rewards, PPO epochs
    step     the same and before it drawing as many answers with `generate`, as TRL always does (Plaudit's rollouts
             come from the engine; this is its trainer's own fallback)

Choices, all to the peer's advantage where there was one: its value model is given an adapter too instead of being
trained whole; its adapters are cast to the model's precision; its policy log-probabilities come free with the
generation's logits; it keeps reference and policy in one model (PEFT). It needs a reward model and a value model of
full size each, for which it has no other option; Plaudit's are heads on the same frozen model, which is part of what
is compared. Its accumulation steps the optimiser once an epoch here, Plaudit once a minibatch. Memory is the largest
resident size of the process, Python and libraries included.

TRL runs in its own environment below --work, made on the first run (requirements/peer-trl.txt; needs a package index).
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, machine, write_result

TORCH = "torch==2.13.0"
SHAPES: dict[str, dict[str, int]] = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151_936},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 49_152},
    "7b": {"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152_064},
}  # fmt: skip
"""Sizes of Qwen 2.5, and one for tests; random weights do for speed."""
SETTINGS = ("answers", "tokens", "minibatch", "epochs", "steps", "repetitions", "lora_layers", "rank", "precision")
SETTINGS += ("device", "threads", "shape")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("PLAUDIT_DATA", "data"))
    parser.add_argument("--model", type=Path, default=default / "models" / "smollm2-135m-instruct")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead (a GPU is advisable)")
    parser.add_argument("--work", type=Path, default=default / "bench" / "ppo_speed", help="environment, runs so far")
    parser.add_argument("--answers", type=int, default=32, help="a step")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--minibatch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="counted steps of a process")
    parser.add_argument("--repetitions", type=int, default=3, help="processes of either side")
    parser.add_argument("--lora-layers", type=float, default=0.34, help="share of the layers, from the top")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="8 answers of 16 tokens, 1 repetition: does it run?")
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier, stopped call measured")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results alone")
    args = parser.parse_args(given)
    if args.quick:
        args.answers, args.tokens, args.minibatch, args.steps, args.repetitions = 8, 16, 4, 1, 1
    return args


# What both sides need


def peer_python(work: Path) -> Path:
    """TRL's environment, made where it is missing."""
    python = work / "peer-venv" / "bin" / "python"
    made = work / "peer-venv" / ".complete"
    if made.exists():
        return python
    print("making TRL's environment (once) …", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(work / "peer-venv")], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.run([*pip, "--no-deps", f"{TORCH}+cpu"], check=False, capture_output=True).returncode:
        subprocess.run([*pip, "uv"], check=True)  # as requirements/install.sh: uv knows where the CPU builds are
        uv = [str(python), "-m", "uv", "pip", "install", "--python", str(python), "--torch-backend", "auto", TORCH]
        subprocess.run(uv, check=True)
    subprocess.run([*pip, "-r", str(ROOT / "requirements" / "peer-trl.txt")], check=True)
    made.touch()
    return python


def shaped_model(args: argparse.Namespace) -> Path:
    """A folder with random weights of the shape, and the given model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder: Path = args.work / f"model-{args.shape}"
    if not (folder / "model.safetensors.index.json").exists() and not (folder / "model.safetensors").exists():
        torch.set_default_dtype(torch.bfloat16)
        config = LlamaConfig(**SHAPES[args.shape], eos_token_id=2, bos_token_id=1, tie_word_embeddings=False)
        LlamaForCausalLM(config).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
        for file in args.model.glob("*token*"):
            shutil.copy(file, folder / file.name)
        shutil.copy(args.model / "chat_template.jinja", folder)
    return folder


def write_prompts(args: argparse.Namespace, file: Path) -> None:
    """Token ids of questions in the model's chat format."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    lines = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    chosen = [
        lines[i % len(lines)] + (f" ({i // len(lines) + 1})" if i >= len(lines) else "") for i in range(args.answers)
    ]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False)
        for q in chosen
    ]
    file.write_text(json.dumps([tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]), encoding="utf-8")


def lowest_adapted(args: argparse.Namespace, model: Path) -> int:
    """The lowest layer with an adapter, as the trainer reckons it."""
    from plaudit_trainer.architecture import lowest_layer

    depth = json.loads((model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return lowest_layer(depth, args.lora_layers)


# Measuring


def worker(side: str, args: argparse.Namespace, model: Path, out: Path, *more: str) -> None:
    """Run one side in a process of its own."""
    python, script = {
        "trl": (args.work / "peer-venv" / "bin" / "python", "trl_ppo.py"),
        "plaudit": (Path(sys.executable), "plaudit_ppo.py"),
    }[side]
    command = [str(python), str(ROOT / "benchmarks" / "peers" / script), f"--model={model}", f"--out={out}"]
    command += [f"--{name}={getattr(args, name)}" for name in ("device", "precision", "minibatch", "epochs", "tokens")]
    command += [f"--{name}={getattr(args, name)}" for name in ("rank", "threads")]
    command += [f"--steps={args.steps + 1}", f"--cut={lowest_adapted(args, model)}", *more]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")


def measure(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What every process measured, by side. Goes on where an earlier call was stopped."""
    rollouts = folder / "rollouts.json"
    if not rollouts.exists():
        write_prompts(args, folder / "prompts.json")
        worker("plaudit", args, model, rollouts, f"--prompts={folder / 'prompts.json'}")
    results: dict[str, list[dict[str, Any]]] = {"trl": [], "plaudit": []}
    for repetition in range(args.repetitions):
        sides = ["trl", "plaudit"] if repetition % 2 == 0 else ["plaudit", "trl"]
        for side in sides:
            out = folder / f"{side}-{repetition}.json"
            if not out.exists():
                print(f"repetition {repetition + 1} of {args.repetitions}: {side}", flush=True)
                more = ["--count"] if side == "plaudit" and repetition == args.repetitions - 1 else []
                worker(side, args, model, out, f"--rollouts={rollouts}", *more)
            results[side].append(json.loads(out.read_text(encoding="utf-8")))
    return results


# Figures


def counted(runs: Sequence[dict[str, Any]], what: str) -> list[float]:
    """Seconds of every counted step."""
    return [step[what] for run in runs for step in run["steps"][1:]]


def ratio(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """[ratio of medians, low, high] with a 95 % percentile bootstrap over steps."""
    draw = random.Random(0)

    def once(a: Sequence[float], b: Sequence[float]) -> float:
        return statistics.median(a) / statistics.median(b)

    draws = sorted(once(draw.choices(slow, k=len(slow)), draw.choices(fast, k=len(fast))) for _ in range(2000))
    return [once(slow, fast), draws[50], draws[1949]]


def phases(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each phase of a counted step."""
    names = {name for run in runs for step in run["steps"][1:] for name in step}
    return {name: statistics.median([s.get(name, 0.0) for r in runs for s in r["steps"][1:]]) for name in sorted(names)}


def figures_of(results: dict[str, list[dict[str, Any]]], args: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Everything that is reported."""
    ours, peer = results["plaudit"], results["trl"]
    peaks = {side: statistics.median([r["memory_mib"]["peak"] for r in runs]) for side, runs in results.items()}
    update = statistics.median(counted(ours, "update"))
    last = next(r for r in ours if "flops" in r)
    rate = max(last["matrix_rate"].values())
    return {
        "samples_per_s_ratio": ratio(counted(peer, "update"), counted(ours, "update")),
        "samples_per_s_ratio_with_generation": ratio(counted(peer, "step"), counted(ours, "step")),
        "peak_memory_ratio": peaks["plaudit"] / peaks["trl"],
        "fraction_of_ceiling": last["flops"] / rate / update,
        "samples_per_s": {
            side: {what: args.answers / statistics.median(counted(runs, what)) for what in ("update", "step")}
            for side, runs in results.items()
        },
        "response_tokens_per_s": tokens / update,
        "memory_mib": {side: runs[-1]["memory_mib"] for side, runs in results.items()},
        "seconds_by_phase": {side: phases(runs) for side, runs in results.items()},
        "flops_of_an_update": last["flops"],
        "matrix_rate": last["matrix_rate"],
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "response_tokens": tokens,
    }


def show(figures: dict[str, Any]) -> None:
    """The table."""
    box = machine()
    print(f"\n{box['processor']}, {box['cores']} cores, {box['memory_gib']} GiB, GPU: {box['gpu'] or 'none'}")
    print(f"{figures['settings']}, {figures['response_tokens']} response tokens a step\n")
    print(f"{'':34}{'TRL 1.12.0':>14}{'Plaudit':>14}")
    rates, memory = figures["samples_per_s"], figures["memory_mib"]
    for what, words in (("update", "samples/s, update"), ("step", "samples/s, with generation")):
        print(f"{words:34}{rates['trl'][what]:14.3f}{rates['plaudit'][what]:14.3f}")
    for what, words in (("imported", "MiB after import"), ("loaded", "MiB with models"), ("peak", "MiB at peak")):
        print(f"{words:34}{memory['trl'][what]:14.0f}{memory['plaudit'][what]:14.0f}")
    for side, seconds in figures["seconds_by_phase"].items():
        print(f"\n{side}, seconds a step")
        for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
            print(f"    {name:30}{value:9.2f}")
    value, low, high = figures["samples_per_s_ratio"]
    print(f"\nsamples/s, update: {value:.2f} times TRL's (95 % {low:.2f} to {high:.2f}); aim ≥ 3")
    value, low, high = figures["samples_per_s_ratio_with_generation"]
    print(f"samples/s, with generation: {value:.2f} times (95 % {low:.2f} to {high:.2f})")
    print(f"peak memory: {figures['peak_memory_ratio']:.2f} of TRL's; aim ≤ 0.5")
    print(
        f"ceiling: {figures['flops_of_an_update'] / 1e12:.2f} TFLOP an update, matrix products run at "
        f"{max(figures['matrix_rate'].values()) / 1e12:.2f} TFLOP/s here: {figures['fraction_of_ceiling']:.0%} used"
    )


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, write. Exit status 2: the model is missing."""
    args = arguments(given)
    if not (args.model / "config.json").is_file():
        print(f"no model in {args.model}: start the server once, which unpacks the bundled one, or give --model")
        return 2
    args.work = args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    peer_python(args.work)
    model = shaped_model(args) if args.shape else args.model.absolute()
    key = "-".join(f"{name[:2]}{getattr(args, name)}" for name in SETTINGS)
    folder = args.work / "runs" / f"{model.name}-{key}"
    if args.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    results = measure(args, model, folder)
    tokens = sum(len(r["response_ids"]) for r in json.loads((folder / "rollouts.json").read_text(encoding="utf-8")))
    figures = figures_of(results, args, tokens)
    show(figures)
    if not args.no_write and not args.quick:
        name = "ppo_speed" + (f"_{args.shape}" if args.shape else "") + ("_all_layers" if args.lora_layers == 1 else "")
        print(f"written: {write_result(name, figures).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
