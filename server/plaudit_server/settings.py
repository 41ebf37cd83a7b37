"""Settings of the server: one class, read from `PLAUDIT_*` environment variables."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Everything that can be set. `docs/reference/settings.md` lists them; a test fails where it does not."""

    model_config = SettingsConfigDict(env_prefix="PLAUDIT_", extra="ignore")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    data: Path = Field(
        default=Path("data"), description="folder for database, versions, keys, logs, the unpacked model"
    )
    database_url: str | None = Field(default=None, description="SQLAlchemy async URL; unset: SQLite in the data folder")
    model: str | None = Field(default=None, description="Hugging Face id or folder; unset: the bundled model")

    engine: Literal["auto", "vllm", "transformers", "fake"] = Field(
        default="auto",
        description="auto: vLLM, or `transformers` (slower) for a model with an encoder; "
        "`fake` answers nonsense, for tests only",
    )
    engine_urls: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="comma-separated URLs of running vLLM servers; unset: start one as a child"
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
    engine_gpu_memory: float = Field(
        default=0.6, gt=0, le=1, description="share of GPU memory vLLM may take; the trainer needs the rest"
    )
    engine_start_timeout_s: float = Field(
        default=600, gt=0, description="how long the engine may take to become healthy"
    )

    consent_default: Literal["granted", "denied"] | None = Field(
        default=None, description="may an exchange be learnt from when the request does not say? Production must set it"
    )
    auto_promote: bool = Field(default=False, description="promote every proven version at once")
    vote_max_age_days: int = Field(default=30, ge=1, description="older votes are kept, marked `trainable: false`")
    max_body_bytes: int = Field(default=1_048_576, ge=1024, description="largest request body")
    max_pending_chats: int = Field(default=256, ge=1, description="chats in flight beyond which the answer is 503")
    probe_slope_low: float = Field(default=0.8, description="the swap probe's interval must lie above this")
    probe_slope_high: float = Field(default=1.2, description="the swap probe's interval must lie below this")

    @field_validator("engine_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        return [url.strip().rstrip("/") for url in value.split(",") if url.strip()] if isinstance(value, str) else value

    @property
    def versions_folder(self) -> Path:
        """Where the trainer publishes versions and the engine reads them."""
        return self.data / "versions"
