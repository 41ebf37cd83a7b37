"""Settings of the server: one class, read from `PLAUDIT_*` environment variables."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
"""What browsers send as `Origin`. `*` and `null` are none: any page at all could then use a key that it found."""


class Settings(BaseSettings):
    """Everything that can be set. `docs/reference/settings.md` lists them; a test fails where it does not."""

    model_config = SettingsConfigDict(env_prefix="PLAUDIT_", extra="ignore")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    data: Path = Field(
        default=Path("data"), description="folder for database, versions, keys, logs, the unpacked model"
    )
    database_url: str | None = Field(
        default=None, description="`postgresql://user:password@host/name`; unset: SQLite in the data folder"
    )
    database_connections: int = Field(
        default=16, ge=2, description="connections to PostgreSQL this server may hold, half of them for writing"
    )
    hash_key_file: Path | None = Field(
        default=None, description="file with the key of the hashes; unset: `hash.key` in the data folder"
    )
    model: str | None = Field(default=None, description="Hugging Face id or folder; unset: the bundled model")

    engine: Literal["auto", "vllm", "transformers", "fake"] = Field(
        default="auto",
        description="auto: vLLM, or `transformers` (slower) for a model with an encoder; "
        "`fake` answers nonsense, for tests only",
    )
    engine_urls: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="comma-separated URLs (also `unix:///path/to/socket`) of running vLLM servers; "
        "unset: start one as a child",
    )
    engine_quorum: int | None = Field(
        default=None, ge=1, description="replicas that must prove a version; unset: all that are ready at that time"
    )
    engine_args: str = Field(
        default="", description="further arguments for the engine's command, as a shell would split them"
    )
    engine_eager: bool | None = Field(
        default=None,
        description="skip compilation (starts in half the time); unset: eager on the CPU, compiled on a GPU",
    )
    engine_max_model_len: int = Field(default=2048, ge=64, description="longest prompt and answer together, in tokens")
    engine_max_loras: int = Field(
        default=4, ge=2, description="adapters a batch may mix; resident versions are bounded by it"
    )
    engine_max_lora_rank: int = Field(default=16, ge=1, description="largest adapter rank accepted")
    engine_kv_cache_gib: int = Field(default=2, ge=1, description="key-value cache of the CPU engine, GiB")
    engine_threads: int | None = Field(
        default=None,
        ge=1,
        description="cores that an engine on the CPU computes on; unset: vLLM all but one, which the rest needs",
    )
    engine_gpu_memory: float = Field(
        default=0.6, gt=0, le=1, description="share of GPU memory vLLM may take; the trainer needs the rest"
    )
    engine_start_timeout_s: float = Field(
        default=600, gt=0, description="how long the engine may take to become healthy"
    )

    engine_drain_s: float = Field(
        default=10, ge=0, description="how long an in-place swap waits for a replica's answers that have begun"
    )
    swap_wait_s: float = Field(
        default=60, ge=0, description="how long a chat waits while the whole model that it asks for is swapped in"
    )

    consent_default: Literal["granted", "denied"] | None = Field(
        default=None, description="may an exchange be learnt from when the request does not say? Production must set it"
    )
    auto_promote: bool = Field(default=False, description="promote every proven version at once")
    rollout_tick_s: float = Field(
        default=5,
        gt=0,
        description="seconds between two looks at a rollout's evidence; more where one look takes long",
    )
    compare_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of stored chats for which a key that may rate is asked, by `x-compare-with`, "
        "to have a second answer and say which is better",
    )
    vote_max_age_days: int = Field(default=30, ge=1, description="older votes are kept, marked `trainable: false`")
    max_body_bytes: int = Field(default=1_048_576, ge=1024, description="largest request body")
    max_pending_chats: int = Field(default=256, ge=1, description="chats in flight beyond which the answer is 503")
    max_pending_chats_key: int = Field(
        default=128, ge=0, description="chats in flight of one key beyond which its answer is 429; 0: no limit"
    )
    chats_per_minute_key: int = Field(default=1200, ge=0, description="chats a minute of one key; 0: no limit")
    chats_per_minute_user: int = Field(default=300, ge=0, description="chats a minute of one end user; 0: no limit")
    feedback_per_minute_key: int = Field(
        default=6000, ge=0, description="votes, comparisons and events a minute of one key; 0: no limit"
    )
    feedback_per_minute_user: int = Field(
        default=300, ge=0, description="votes, comparisons and events a minute of one end user; 0: no limit"
    )
    wrong_keys_per_minute: int = Field(
        default=60, ge=0, description="wrong keys and tokens a minute from one address; 0: no limit"
    )
    trusted_proxies: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="comma-separated addresses or networks whose `X-Forwarded-For` and `-Proto` are believed",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="comma-separated origins whose pages may call chat and feedback routes with a key",
    )
    max_header_bytes: int = Field(default=32_768, ge=1024, description="largest request line and headers together")
    header_timeout_s: float = Field(default=10, gt=0, description="how long the headers of a request may take")
    body_timeout_s: float = Field(default=30, gt=0, description="how long the body of a request may take")
    max_stream_s: float = Field(default=600, gt=0, description="how long an answer may stream before it is ended")
    live_tick_s: float = Field(
        default=2, gt=0, description="seconds between two looks for `GET /v1/live`; more where one look takes long"
    )
    max_live_listeners: int = Field(
        default=32, ge=1, description="streams of `GET /v1/live` beyond which the answer is 503"
    )
    probe_slope_low: float = Field(default=0.8, description="the swap probe's interval must lie above this")
    probe_slope_high: float = Field(default=1.2, description="the swap probe's interval must lie below this")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="least level that is logged; lines are JSON on standard error, without text of users",
    )
    access_log: bool = Field(default=False, description="log a line for each request, after its last byte")
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://.",
        description="OTLP/HTTP collector for traces, such as `http://collector:4318`; unset: none",
    )

    @field_validator("engine_urls", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value

    @field_validator("engine_urls")
    @classmethod
    def _without_slash(cls, value: list[str]) -> list[str]:
        return [url.rstrip("/") for url in value]

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is no origin: give scheme, host and port, such as https://app.example.com")
        return value

    @property
    def versions_folder(self) -> Path:
        """Where the trainer publishes versions and the engine reads them."""
        return self.data / "versions"
