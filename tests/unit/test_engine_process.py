"""What vLLM is told, and what is said when it dies."""

from pathlib import Path

import pytest

from plaudit_server.engine import process
from plaudit_server.engine.keeper import LONGEST_PAUSE_S, pause_before
from plaudit_server.engine.process import build_launch, telling_lines
from plaudit_server.settings import Settings


def settings(**values: object) -> Settings:
    return Settings.model_validate({"data": Path("data"), **values})


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_command_line_follows_the_settings() -> None:
    launch = build_launch(settings(engine_max_loras=3), Path("/m"), Path("/tmp/x"), "cpu", target_modules=["q_proj"])

    assert launch.command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert after(launch.command, "--uds") == "/tmp/x/engine.sock"
    assert after(launch.command, "--max-loras") == "5", "one more for a candidate's parent, one stays empty"
    assert after(launch.command, "--logprobs-mode") == "processed_logprobs"
    assert after(launch.command, "--generation-config") == "vllm"
    assert after(launch.command, "--lora-target-modules") == "q_proj"
    assert launch.environment["HF_HUB_OFFLINE"] == "1"
    assert launch.log == Path("data/logs/engine.log")


@pytest.mark.parametrize(
    ("device", "eager", "expected"),
    [("cpu", None, True), ("gpu", None, False), ("cpu", False, False), ("gpu", True, True)],
)
def test_eager_by_default_on_the_cpu_only(device: str, eager: bool | None, expected: bool) -> None:
    launch = build_launch(settings(engine_eager=eager), Path("/m"), Path("/t"), device)  # type: ignore[arg-type]

    assert ("--enforce-eager" in launch.command) is expected


def test_devices_get_their_own_memory_settings() -> None:
    cpu = build_launch(settings(engine_kv_cache_gib=7), Path("/m"), Path("/t"), "cpu")
    gpu = build_launch(settings(engine_gpu_memory=0.4), Path("/m"), Path("/t"), "gpu")

    assert cpu.environment["VLLM_CPU_KVCACHE_SPACE"] == "7" and "--gpu-memory-utilization" not in cpu.command
    assert after(gpu.command, "--gpu-memory-utilization") == "0.4"
    assert after(cpu.command, "--dtype") == "float32" and "--dtype" not in gpu.command


def test_a_cpu_engine_computes_in_its_core_on_all_cores_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "count_cores", lambda: 8)
    monkeypatch.setattr(process, "count_memory_nodes", lambda: 1)
    unset, chosen = [
        build_launch(settings(engine_threads=threads), Path("/m"), Path("/t"), "cpu").environment
        for threads in (None, 8)
    ]

    assert unset["VLLM_ENABLE_V1_MULTIPROCESSING"] == chosen["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert (unset["OMP_NUM_THREADS"], chosen["OMP_NUM_THREADS"]) == ("7", "8")


def test_where_memory_has_nodes_vllm_binds_its_threads_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "count_memory_nodes", lambda: 2)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)

    launch = build_launch(settings(), Path("/m"), Path("/t"), "cpu")

    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in launch.environment


def test_a_gpu_engine_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)

    launch = build_launch(settings(engine_threads=3), Path("/m"), Path("/t"), "gpu")

    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in launch.environment


def test_further_arguments_are_split_as_a_shell_does_and_come_last() -> None:
    launch = build_launch(settings(engine_args="--seed 3 --x 'a b'"), Path("/m"), Path("/t"), "cpu")

    assert launch.command[-4:] == ["--seed", "3", "--x", "a b"]


def test_the_error_is_found_in_the_log() -> None:
    log = """(APIServer pid=7) INFO 11-23 18:18:41 [api_utils.py:347] hello
(EngineCore pid=9) ERROR 11-23 18:20:00 [core.py:1750] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-23 18:20:00 [core.py:1750]   File "x.py", line 1, in <module>
(EngineCore pid=9) ERROR 11-23 18:20:00 [core.py:1750] ValueError: not enough memory for the KV cache
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.
"""
    assert telling_lines(log) == "ValueError: not enough memory for the KV cache"


def test_bad_arguments_are_told() -> None:
    log = "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --nonsense\n"

    assert telling_lines(log) == "api_server.py: error: unrecognized arguments: --nonsense"


def test_without_an_error_the_last_line_is_told() -> None:
    assert telling_lines("one\n\ntwo\n\n") == "two"
    assert telling_lines("") == "it said nothing"


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_before(n) for n in range(4)] == [1, 2, 4, 8]
    assert pause_before(30) == LONGEST_PAUSE_S
