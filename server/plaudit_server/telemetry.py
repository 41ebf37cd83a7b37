"""What the server tells of itself: Prometheus figures and one-line JSON logs. Neither ever carries text of users."""

import logging
import sys
import time
import traceback
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version as release_of
from typing import Any, Final

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from plaudit.wire.versions import ReplicaProof
from plaudit_server.tracing import Tracing

METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SPEEDS = (1, 2.5, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 1)

ENGINE_STATES: Final = ("starting", "ready", "down")

RETIRED_KEEP_S: Final = 600.0
"""How long the series of a version outlive its residency: long enough for its last figures to be fetched."""


_NO_SPAN: Final = nullcontext()


class Telemetry:
    """The figures of one app, in a registry of its own so that two apps in a process do not mix.

    Args:
        tracing: where spans go; unset: nowhere.
    """

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.tracing = tracing
        self.registry = CollectorRegistry()
        self.proofs: dict[str, ReplicaProof] = {}
        self._current_at: dict[str, float] = {}
        self._count_requests()
        self._count_chats()
        self._count_swaps()
        self._gauge_training()
        self._gauge_rollouts()
        ProcessCollector(registry=self.registry)

    def _count_requests(self) -> None:
        self.info = Gauge("plaudit_info", "1, for the release that runs", ["release"], registry=self.registry)
        self.info.labels(release_of("plaudit")).set(1)
        self.requests = Counter(
            "plaudit_requests", "Requests answered", ["route", "method", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "plaudit_request_seconds",
            "Seconds from request to the last byte of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.scrape_seconds = Gauge(
            "plaudit_scrape_seconds", "Seconds that gathering the figures before these took", registry=self.registry
        )

    def _count_chats(self) -> None:
        self.overhead_seconds = Histogram(
            "plaudit_overhead_seconds",
            "Seconds a chat spent in this server before the engine was asked",
            buckets=_OVERHEAD,
            registry=self.registry,
        )
        self.ttft_seconds = Histogram(
            "plaudit_ttft_seconds",
            "Seconds from request to the engine's first token",
            ["version"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "plaudit_tokens", "Tokens read (prompt) and drawn (completion)", ["version", "kind"], registry=self.registry
        )
        self.tokens_per_second = Histogram(
            "plaudit_chat_tokens_per_second",
            "Tokens a second of one streamed chat, from its first token to its last",
            ["version"],
            buckets=_SPEEDS,
            registry=self.registry,
        )
        self.chats = Counter("plaudit_chats", "Chats by how they ended", ["version", "status"], registry=self.registry)
        self.votes = Counter("plaudit_votes", "Votes received", ["version", "value"], registry=self.registry)
        self.in_flight = Gauge("plaudit_chats_in_flight", "Chats being answered now", registry=self.registry)
        self.unrecorded = Counter(
            "plaudit_answers_unrecorded", "Answers given but not written to the database", registry=self.registry
        )
        self.answers_waiting = Gauge(
            "plaudit_answers_waiting", "Chats whose rows are being written and are not durable", registry=self.registry
        )
        self.writer_queue = Gauge(
            "plaudit_writer_queue", "Writes that wait for the database's next transaction", registry=self.registry
        )
        self.limited = Counter(
            "plaudit_limited", "Requests refused for being too many, by limit", ["limit"], registry=self.registry
        )
        self.denied = Counter(
            "plaudit_denied", "Requests refused for want of a role", ["route"], registry=self.registry
        )

    def _count_swaps(self) -> None:
        self.engine_state = Gauge(
            "plaudit_engine_state", "1 for the state each replica is in", ["replica", "state"], registry=self.registry
        )
        self.engine_restarts = Gauge(
            "plaudit_engine_restarts", "Times each replica was started again", ["replica"], registry=self.registry
        )
        self.swaps = Counter(
            "plaudit_swaps", "Installations of a version, by result", ["result"], registry=self.registry
        )
        self.swap_seconds = Histogram(
            "plaudit_swap_seconds", "Seconds to load and prove a version", buckets=_SECONDS, registry=self.registry
        )
        self.probe_slope = Gauge(
            "plaudit_probe_slope", "Slope of the newest swap probe: 1 = live", ["replica"], registry=self.registry
        )
        self.probe_low = Gauge(
            "plaudit_probe_low", "Lower end of that slope's interval", ["replica"], registry=self.registry
        )
        self.probe_high = Gauge(
            "plaudit_probe_high", "Upper end of that slope's interval", ["replica"], registry=self.registry
        )
        self.probe_margin = Gauge(
            "plaudit_probe_margin",
            "How far the interval lies inside its bounds; below 0 it is refused",
            ["replica"],
            registry=self.registry,
        )
        self.probe_bound = Gauge(
            "plaudit_probe_bound", "Bounds that the interval must lie between", ["side"], registry=self.registry
        )
        self.versions = Gauge("plaudit_versions", "Versions by state", ["state"], registry=self.registry)
        self.versions_resident = Gauge(
            "plaudit_versions_resident", "Versions proven on every ready replica, base aside", registry=self.registry
        )
        self.alias_version = Gauge(
            "plaudit_alias_version",
            "1, for the version that an alias names",
            ["alias", "version"],
            registry=self.registry,
        )
        self.stable_proven = Gauge(
            "plaudit_stable_proven", "1 where a chat on `policy` would be answered", registry=self.registry
        )
        for result in ("passed", "failed"):
            self.swaps.labels(result)  # born at 0, or the first failure would be no increase
        self.alias_moves = Counter("plaudit_alias_moves", "Moves of an alias", ["alias", "by"], registry=self.registry)

    def _gauge_training(self) -> None:
        self.records_waiting = Gauge(
            "plaudit_records_waiting", "Rated answers that wait to be learnt from", registry=self.registry
        )
        self.runs = Gauge("plaudit_training_runs", "Training runs by state", ["state"], registry=self.registry)
        self.stage = Gauge(
            "plaudit_training_stage", "1 for the stage that the running run is in", ["stage"], registry=self.registry
        )
        self.progress = Gauge(
            "plaudit_training_progress", "Share of that stage that is done, 0 to 1", registry=self.registry
        )
        self.step = Gauge("plaudit_training_step", "Newest step that the running run reported", registry=self.registry)
        self.figures = Gauge(
            "plaudit_training_figure", "Newest figures of the newest run", ["figure"], registry=self.registry
        )
        self.trainer_silent = Gauge(
            "plaudit_trainer_silent_seconds",
            "Seconds since a trainer was heard, or since this server began, whichever is shorter",
            registry=self.registry,
        )
        self.leases_held = Gauge("plaudit_leases_held", "Batches that a worker holds", registry=self.registry)
        self.lease_age = Gauge(
            "plaudit_lease_age_seconds", "Age of the oldest lease that is held; 0 where none is", registry=self.registry
        )
        self.lease_overdue = Gauge(
            "plaudit_lease_overdue_seconds",
            "Seconds since a held lease should have been renewed",
            registry=self.registry,
        )
        self.leases = Counter("plaudit_leases", "Lease requests by result", ["state"], registry=self.registry)

    def _gauge_rollouts(self) -> None:
        self.rollout_weight = Gauge(
            "plaudit_rollout_weight", "Share of users on the candidate; 0 without a rollout", registry=self.registry
        )
        self.rollout_e_value = Gauge(
            "plaudit_rollout_e_value", "Evidence that the candidate is worse: rolled back at 20", registry=self.registry
        )
        self.rollout_raters = Gauge(
            "plaudit_rollout_raters", "Users of the present rollout who voted", ["arm"], registry=self.registry
        )

    def span(self, name: str, **attributes: str | float | bool) -> AbstractContextManager[object]:
        """A span of the trace that the caller is in; nothing at all where traces are off. Never text of users."""
        return _NO_SPAN if self.tracing is None else self.tracing.span(name, attributes)

    def spoke(self, version: str, tokens: int, seconds: float) -> None:
        """A streamed chat ended: `tokens` came in the `seconds` since the first of them."""
        if tokens > 1 and seconds > 0:
            self.tokens_per_second.labels(version).observe((tokens - 1) / seconds)

    def voted(self, version: str | None, value: str, *, current: Collection[str]) -> None:
        """Count a vote. Late votes on versions that serve no more are counted together, as `retired`."""
        alive = version in current or version in self._current_at
        label = "unknown" if version is None else version if alive else "retired"
        self.votes.labels(label, value).inc()

    def forget_retired(self, current: Collection[str]) -> None:
        """Drop the series of versions that have not been current for `RETIRED_KEEP_S`: labels stay bounded.

        Args:
            current: versions that serve, are held or are resident.
        """
        now = time.monotonic()
        seen = {s.labels["version"] for m in (self.chats, self.votes) for f in m.collect() for s in f.samples}
        for name in seen - {"unknown", "retired"}:
            self._current_at.setdefault(name, now)
        self._current_at |= dict.fromkeys(current, now)
        for name in [name for name, at in self._current_at.items() if now - at > RETIRED_KEEP_S]:
            del self._current_at[name]
            for metric in (self.ttft_seconds, self.tokens, self.tokens_per_second, self.chats, self.votes):
                metric.remove_by_labels({"version": name})

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object a line. Fields come from `log_event`; a record of another library keeps its first line.

    Tracebacks tell where and of which type, not what the exception says: messages of exceptions quote values, and
    values can be what a person wrote.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        message = record.getMessage()
        if not record.name.startswith("plaudit"):
            message = message.partition("\n")[0]
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": message,
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = _without_words(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


def _without_words(error: BaseException | None) -> list[str]:
    """The exception and what caused it, outermost first: types and places."""
    lines: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines.append(f"{type(error).__module__}.{type(error).__qualname__}")
        frames = traceback.extract_tb(error.__traceback__)
        lines += [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


def log_event(logger: logging.Logger, level: int, event: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Log an event with structured fields. Never pass text that a user wrote."""
    logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


_TALKATIVE: Final = ("httpx", "httpcore", "alembic", "aiosqlite", "asyncpg", "sqlalchemy", "opentelemetry", "urllib3")
"""Libraries that log statements with their parameters, addresses or headers when they are asked for detail."""


def configure_logging(level: int = logging.INFO) -> None:
    """Send everything to standard error as JSON lines. Called by `serve`, never on import."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
