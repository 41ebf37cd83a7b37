"""One chat that was asked: by whom, of whom, and what its answers will be called."""

import time
from dataclasses import dataclass, field

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import ChatRequest
from plaudit_server.domain.ids import choice_id, new_completion_id
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.traffic import Route
from plaudit_server.engine.base import Brand
from plaudit_server.errors import Unprocessable

_SAMPLING_EXTRAS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "length_penalty",
)
_CONSTRAINTS = (
    "logit_bias",
    "response_format",
    "structured_outputs",
    "bad_words",
    "allowed_token_ids",
    "tools",
    "logits_processors",
    "vllm_xargs",
)


def check_fits(asked: ChatRequest, max_model_len: int) -> None:
    """Refuse an answer that is asked to be longer than the model can speak.

    Raises:
        Unprocessable: so it is; `max_model_len` is in tokens.
    """
    for name in ("max_tokens", "max_completion_tokens"):
        if (getattr(asked, name) or 0) > max_model_len:
            raise Unprocessable(f"{name} is larger than the model's context of {max_model_len} tokens.", param=name)


@dataclass(slots=True)
class Chat:
    """What is known of a chat before the engine is asked. Times: `started` by the monotonic clock, in seconds.

    `cut_off` is set where its answer took longer than an answer may. `compare_with` is the model whose answer to the
    same messages the caller is asked to show beside this one.
    """

    request: ChatRequest
    route: Route
    fingerprint: str
    request_id: str
    key_id: str
    end_user: str
    consent: bool
    started: float
    id: str = field(default_factory=new_completion_id)
    created_at_ms: int = field(default_factory=now_ms)
    overhead_s: float = 0.0
    feedback_token: str | None = None
    compare_with: str | None = None
    cut_off: bool = False

    @property
    def stored(self) -> bool:
        """Whether the answer may be kept at all."""
        return self.request.store is not False

    @property
    def response_ids(self) -> list[str]:
        """The ids that its choices will have."""
        return [choice_id(self.id, index) for index in range(self.request.n or 1)]

    def ask(self) -> JsonObject:
        """The body for the engine. Stops the clock on what this server cost."""
        self.overhead_s = time.monotonic() - self.started
        return self.request.engine_fields()

    def headers(self) -> dict[str, str]:
        """What every answer says of its making."""
        told = {
            "x-model-version": self.route.version,
            "x-rollout-arm": self.route.arm,
            "x-overhead-ms": f"{self.overhead_s * 1000:.2f}",
        }
        if self.feedback_token:
            told["x-feedback-token"] = self.feedback_token
        if self.compare_with:
            told["x-compare-with"] = self.compare_with
        return told

    @property
    def brand(self) -> Brand:
        """What its answer says of its making."""
        return Brand(self.id, self.created_at_ms // 1000, f"policy@{self.route.version}", self.fingerprint)

    def sampling(self) -> JsonObject:
        """How the tokens were drawn, as it is kept: numbers only, since other fields can hold a person's words.

        `has_stop`: the caller's own stop strings or tokens could end the answer before its end-of-text token.
        `constrained` marks answers that were drawn under a rule which a plain forward pass does not know.
        """
        asked = self.request
        extra = asked.model_extra or {}
        sampling: JsonObject = {
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "max_tokens": asked.max_completion_tokens or asked.max_tokens,
            "seed": asked.seed,
            "has_stop": bool(asked.stop or extra.get("stop_token_ids")),
        }
        numbers = {name: extra[name] for name in _SAMPLING_EXTRAS if isinstance(extra.get(name), int | float)}
        constrained: JsonObject = {"constrained": True} if any(extra.get(name) for name in _CONSTRAINTS) else {}
        return sampling | numbers | constrained
