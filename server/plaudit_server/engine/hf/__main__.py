"""`python -m plaudit_server.engine.hf --uds SOCKET --model FOLDER`: load the model, then listen until ended."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from plaudit_server.engine.plugin import LIFELINE_VARIABLE, expected_parent, watch_parent

_GRACE_S = 2
"""How long answers in progress may go on after a signal; `lifeline.py` insists after three seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; the exit status. Arguments are read before torch is imported."""
    given = _parser().parse_args(arguments)
    if lifeline := os.environ.get(LIFELINE_VARIABLE):
        watch_parent(expected_parent(int(lifeline)))  # without the server there is nobody to answer
    import torch
    import uvicorn

    from plaudit_server.engine.hf.api import Worker
    from plaudit_server.engine.hf.model import ServedModel
    from plaudit_server.engine.hf.scheduler import Scheduler

    if given.threads:
        torch.set_num_threads(given.threads)
    model = ServedModel(given.model, dtype=given.dtype, device=given.device, max_model_len=given.max_model_len)
    servers: list[uvicorn.Server] = []

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    scheduler = Scheduler(model, max_rows=given.max_rows, on_death=stop)
    app = Worker(model, scheduler).app()
    config = uvicorn.Config(
        app, uds=str(given.uds), log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S
    )
    servers.append(uvicorn.Server(config))
    servers[0].run()
    died = not scheduler.is_alive
    scheduler.close()
    return 1 if died else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plaudit_server.engine.hf", description=__doc__)
    parser.add_argument("--uds", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--max-model-len", type=int, default=2048, help="prompt and answer together, in tokens")
    parser.add_argument("--max-rows", type=int, default=16, help="answers drawn together")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on the CPU")
    parser.add_argument("--device", help="cpu, cuda, …; default: a GPU where there is one")
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's choice")
    return parser


if __name__ == "__main__":
    sys.exit(main())
