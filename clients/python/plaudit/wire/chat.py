"""Chat completions as OpenAI has them, and the stored form.

Only the fields that the server itself acts on are declared; everything else passes through to the engine unread.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from plaudit.wire.base import JsonObject, Label, Moment, ResponseModel, VersionName

MODEL_PATTERN = r"^policy(@(base|stable|canary|previous|v[1-9][0-9]{0,8}))?$"


MAX_STOP_CHARACTERS = 256

StopString = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]

_TEXT_PARTS = frozenset({"text", "refusal"})

_MAX_ITEMS = {"stop_token_ids": 128, "bad_words": 128, "logit_bias": 1024, "tools": 128}
"""Of fields that go to the engine unread: how many entries it may be made to look at for each token."""


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`. Unknown fields go to the engine."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str = Field(default="policy", max_length=64, description="policy, policy@v42, policy@canary, policy@base")
    messages: list[JsonObject] = Field(min_length=1, max_length=1000)
    stream: bool | None = False
    stream_options: JsonObject | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = 1
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    store: bool | None = True
    train: bool | None = Field(default=None, description="whether the exchange may be learnt from")
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    user: Label | None = None
    safety_identifier: Label | None = None

    @field_validator("messages")
    @classmethod
    def _are_text(cls, messages: list[JsonObject]) -> list[JsonObject]:
        for message in messages:
            content = message.get("content")
            for part in content if isinstance(content, list) else [content] if isinstance(content, dict) else ():
                if not isinstance(part, str) and not _is_text(part):
                    raise ValueError("content parts must be of type text: images, audio and files are not taken")
        return messages

    @model_validator(mode="after")
    def _is_bounded(self) -> "ChatRequest":
        for name, bound in _MAX_ITEMS.items():
            given = (self.model_extra or {}).get(name)
            if isinstance(given, list | dict) and len(given) > bound:
                raise ValueError(f"{name} may have at most {bound} entries")
        return self

    def engine_fields(self) -> JsonObject:
        """The body for the engine: what the caller sent, less the fields that are ours."""
        ours = {"model", "store", "train", "metadata", "user", "safety_identifier"}
        return {name: value for name, value in self.model_dump(exclude_unset=True).items() if name not in ours}


def _is_text(part: JsonValue) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXT_PARTS


class SamplingParams(ResponseModel):
    """How the tokens were drawn. What is None was left to the engine's default and is recorded as such."""

    model_config = ConfigDict(extra="allow")

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)


class StoredCompletion(ResponseModel):
    """One logged answer. A request with n > 1 has one for each choice."""

    object: Literal["chat.completion.stored"] = "chat.completion.stored"
    id: str
    created_at: Moment
    model: str
    version: VersionName
    arm: Literal["stable", "canary", "pinned"]
    messages: list[JsonObject]
    content: str
    finish_reason: str | None = Field(description="stop, length, tool_calls; null where the client went away")
    status: Literal["complete", "aborted", "failed"]
    prompt_tokens: int
    completion_tokens: int
    sampling: SamplingParams
    metadata: dict[str, str] = Field(default_factory=dict)
    train_consent: bool
    redacted: bool = False
    end_user: str | None = None
    feedback_count: int = 0


class Deleted(ResponseModel):
    """The answer to a DELETE."""

    id: str
    object: str
    deleted: Literal[True] = True


class ModelCard(ResponseModel):
    """One name that a chat request may ask for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "plaudit"
    version: VersionName
    parent: JsonValue = None
