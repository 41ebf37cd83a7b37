"""Seeded requests on vLLM's CPU build, whose prompts are read in several steps.

Of a prompt that is read in part vLLM draws a token all the same, throws it away and rewinds the request's generator by
an offset. A CPU's generator has none and raises, and the engine ends with every answer that it was giving: a `seed` and
a prompt that shares a step with others were enough (vLLM 0.32). Here what is thrown away is not drawn from the
request's generator in the first place, so there is nothing to rewind, and a seed gives the same answer however its
prompt was read.
"""

import functools
import logging
from typing import Any

_log = logging.getLogger("vllm.plaudit")  # below vLLM's own logger, so that it reaches the engine's log


def install() -> bool:
    """Do so in this process. Returns whether it was done."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if not (hasattr(CPUModelRunner, "_sample") and hasattr(CPUModelRunner, "_bookkeeping_sync")):
        _log.error("This vLLM draws tokens in another way than was tested; a seeded request may end the engine")
        return False
    set_aside(CPUModelRunner)
    return True


def set_aside(runner: Any) -> None:
    """Keep the generators of requests whose token is thrown away out of a step, from its draw to its bookkeeping.

    Args:
        runner: vLLM's class that runs the model.
    """
    draw, keep_books = runner._sample, runner._bookkeeping_sync

    @functools.wraps(draw)
    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        thrown_away = self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]
        self.plaudit_set_aside = {i: generators.pop(i) for i in thrown_away.tolist() if i in generators}
        return draw(self, *args, **kwargs)

    @functools.wraps(keep_books)
    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return keep_books(self, *args, **kwargs)
        finally:
            self.input_batch.generators.update(self.plaudit_set_aside)

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync
