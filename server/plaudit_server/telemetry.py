"""What the server tells of itself: Prometheus figures and one-line JSON logs. Neither ever carries text of users."""

import logging
import sys
import time
from typing import Any, Final

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

METRICS_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 1)

ENGINE_STATES: Final = ("starting", "ready", "down")


class Telemetry:
    """The figures of one app, in a registry of its own so that two apps in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.chats = Counter("plaudit_chats", "Chats by how they ended", ["version", "status"], registry=self.registry)
        self.votes = Counter("plaudit_votes", "Votes received", ["version", "value"], registry=self.registry)
        self.in_flight = Gauge("plaudit_chats_in_flight", "Chats being answered now", registry=self.registry)
        self.unrecorded = Counter(
            "plaudit_answers_unrecorded", "Answers given but not written to the database", registry=self.registry
        )
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
        self.alias_moves = Counter("plaudit_alias_moves", "Moves of an alias", ["alias", "by"], registry=self.registry)
        self.records_waiting = Gauge(
            "plaudit_records_waiting", "Rated answers that wait to be learnt from", registry=self.registry
        )
        self.runs = Gauge(
            "plaudit_training_runs", "The newest 100 training runs by state", ["state"], registry=self.registry
        )
        self.rollout_weight = Gauge(
            "plaudit_rollout_weight", "Share of users on the candidate; 0 without a rollout", registry=self.registry
        )
        self.rollout_e_value = Gauge(
            "plaudit_rollout_e_value", "Evidence that the candidate is worse: rolled back at 20", registry=self.registry
        )
        self.rollout_raters = Gauge(
            "plaudit_rollout_raters", "Users of the present rollout who voted", ["arm"], registry=self.registry
        )
        self.leases = Counter("plaudit_leases", "Lease requests by result", ["state"], registry=self.registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """One JSON object a line. Fields come from `log_event`; a record of another library keeps its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def log_event(logger: logging.Logger, level: int, event: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Log an event with structured fields. Never pass text that a user wrote."""
    logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


def configure_logging(level: int = logging.INFO) -> None:
    """Send everything to standard error as JSON lines. Called by `serve`, never on import."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
