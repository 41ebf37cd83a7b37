"""A misspelt setting must not pass for its default: names of environment variables are checked at start."""

import difflib
from collections.abc import Collection, Iterable

# Read by parts of Plaudit that are not settings of server or trainer: SDK, installer, engine plugin, tests, benchmarks.
ELSEWHERE = (
    "API_KEY",
    "URL",
    "STACK",
    "CPU_LORA",
    "LIFELINE",
    "LIFELINE_PID",
    "CHAOS_KILLS",
    "CHAOS_SEED",
    "BENCH_DATA",
    "TEST_POSTGRES",
)


def unknown_variable(variables: Iterable[str], prefix: str, known: Collection[str]) -> str | None:
    """Words for the first variable with this prefix that nothing reads; None where all are known.

    Args:
        variables: names of the environment's variables.
        prefix: what a setting's name begins with, `PLAUDIT_` or longer.
        known: names of settings without the prefix, in upper case.
    """
    for name in sorted(variables):
        rest = name.removeprefix(prefix)
        if rest != name and rest not in known:
            near = difflib.get_close_matches(rest, known, n=1)
            mend = f"did you mean {prefix}{near[0]}?" if near else "see docs/reference, or unset it"
            return f"{name}: there is no such setting; {mend}"
    return None
