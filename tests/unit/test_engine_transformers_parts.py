"""The transformers worker's parts: how tokens are drawn, how text grows, adapters side by side, whose turn it is."""

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plaudit.wire.prompts import plain_prompt, prompt_text
from plaudit_server.engine.hf.lora import AdapterRefused, Adapters
from plaudit_server.engine.hf.sampling import BadRequest, Sampling, draw, processed_logprobs, read_sampling
from plaudit_server.engine.hf.scheduler import Asked, Drawn, Emitted, QueueFull, Scheduler
from plaudit_server.engine.hf.text import GrowingText

# Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def softmax(logits: Sequence[float]) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(x) / total for x in logits]


def test_log_probabilities_are_those_after_the_temperature() -> None:
    got = processed_logprobs(LOGITS, Sampling(temperature=0.5)).exp()
    assert got.tolist() == pytest.approx(softmax([x / 0.5 for x in LOGITS.tolist()]), abs=1e-6)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=2), 2),
        (Sampling(top_p=0.7), 2),  # 0.61, 0.84, …: the first two reach 0.7
        (Sampling(top_p=0.6), 1),
        (Sampling(min_p=0.2), 3),  # 0.5 − 2.0: e^-1.5 = 0.22 of the likeliest
        (Sampling(top_k=4, top_p=0.999, min_p=0.01), 4),
    ],
)
def test_what_is_cut_off_is_shared_out_among_the_rest(sampling: Sampling, kept: int) -> None:
    got = processed_logprobs(LOGITS, sampling)
    assert got.exp().tolist() == pytest.approx([*softmax(LOGITS.tolist()[:kept]), *[0.0] * (5 - kept)], abs=1e-6)


def test_temperature_zero_takes_the_likeliest_and_tells_its_plain_log_probability() -> None:
    token, logprobs = draw(LOGITS, Sampling(temperature=0, top_k=1), torch.Generator())
    assert (token, logprobs[0].item()) == (0, pytest.approx(math.log(softmax(LOGITS.tolist())[0]), abs=1e-6))


def test_draws_follow_the_log_probabilities_and_repeat_with_their_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=0.8, top_k=3)
    drawn = [draw(LOGITS, sampling, generator)[0] for _ in range(4000)]
    expected = processed_logprobs(LOGITS, sampling).exp()
    assert [drawn.count(t) / 4000 for t in range(5)] == pytest.approx(expected.tolist(), abs=0.03)
    again = torch.Generator().manual_seed(0)
    assert drawn[:50] == [draw(LOGITS, sampling, again)[0] for _ in range(50)]


def test_banned_tokens_never_come() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {draw(LOGITS, Sampling(), generator, frozenset({0, 1}))[0] for _ in range(300)} <= {2, 3, 4}


def test_a_request_without_fields_is_neutral() -> None:
    assert read_sampling({}, room=7) == Sampling(max_tokens=7)
    assert read_sampling({"stop": "x", "max_tokens": 3, "presence_penalty": 0, "top_k": -1}, room=7) == Sampling(
        max_tokens=3, stop=("x",)
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"max_tokens": 8}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match=param) as caught:
        read_sampling(body, room=7)
    assert caught.value.param == param


# Text


def spell(ids: Sequence[int]) -> str:
    """A tokenizer of bytes: characters beyond ASCII take several tokens."""
    return bytes(ids).decode("utf-8", "replace")


def grow(text: str, *stop: str) -> tuple[list[str], bool]:
    growing, pieces = GrowingText(spell, stop), []
    for token in text.encode():
        pieces.append(growing.push(token))
        if growing.stopped:
            break
    return [*pieces, growing.end()], growing.stopped


def test_a_character_is_told_when_it_is_whole() -> None:
    assert grow("aé!") == (["a", "", "é", "!", ""], False)


def test_a_stop_string_and_what_may_become_one_are_held_back() -> None:
    assert grow("say END.", "END") == (["s", "a", "y", " ", "", "", "", ""], True)
    assert grow("say EN", "END") == (["s", "a", "y", " ", "", "", "EN"], False)
    assert grow("EEND", "END") == (["", "E", "", "", ""], True)


# Prompts


class Templated:
    chat_template = "yes"

    @staticmethod
    def apply_chat_template(messages: list[dict[str, str]], **_: Any) -> str:
        return "|".join(m["content"] for m in messages)


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_bare_instruction_stays_bare() -> None:
    assert plain_prompt([say("user", "Translate: house")]) == "Translate: house"
    assert plain_prompt([say("system", "Be brief."), say("user", "Hi")]) == "Be brief.\n\nHi"


def test_turns_are_told_apart() -> None:
    turns = [say("system", "S"), say("user", "a"), say("assistant", "b"), say("user", "c")]
    assert plain_prompt(turns) == "S\n\nUser: a\nAssistant: b\nUser: c\nAssistant:"


def test_parts_are_joined_and_pictures_refused() -> None:
    assert plain_prompt([say("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]) == "ab"
    with pytest.raises(ValueError, match="must be text"):
        plain_prompt([say("user", [{"type": "image_url", "image_url": {}}])])


def test_a_template_writes_its_own_special_tokens_but_not_the_encoders_end() -> None:
    messages = [say("user", [{"type": "text", "text": "a"}]), say("assistant", "b")]
    assert prompt_text(messages, Templated(), has_encoder=False) == ("a|b", False)
    assert prompt_text(messages, Templated(), has_encoder=True) == ("a|b", True)
    assert prompt_text(messages[:1], object(), has_encoder=True) == ("a", True)
    assert prompt_text(messages[:1], object(), has_encoder=False) == ("a", True)


# Adapters


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], rank: int = 2, alpha: int = 2) -> Path:
    folder.mkdir()
    save_file({f"base_model.model.{k}.weight": v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {"one": torch.nn.Linear(4, 3), "two": torch.nn.Linear(3, 2), "norm": torch.nn.LayerNorm(4)}
    )


def pair(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"one.lora_A": torch.randn(2, 4, generator=generator), "one.lora_B": torch.randn(3, 2, generator=generator)}


def test_adapters_are_resident_side_by_side_and_never_mixed(model: Any, tmp_path: Path) -> None:
    adapters, x = Adapters(model), torch.randn(5, 4)
    plain, expected = model["one"], {}
    for seed in (1, 2):
        weights = pair(seed)
        number = adapters.load(f"v{seed}", write_adapter(tmp_path / f"v{seed}", weights))
        expected[number] = plain(x) + x @ weights["one.lora_A"].T @ weights["one.lora_B"].T
    for number, wanted in expected.items():
        with adapters.using(number):
            torch.testing.assert_close(model["one"](x), wanted)
    with adapters.using(None):
        torch.testing.assert_close(model["one"](x), plain(x))
    assert adapters.names == {"v1": 1, "v2": 2}
    adapters.unload("v1")
    with pytest.raises(AdapterRefused, match="no longer"), adapters.using(1):
        pass
    assert adapters.load("v3", tmp_path / "v1") == 3, "a number is never used twice"
    assert adapters.forget_all([2, 3]) == [] and adapters.names == {}


def test_digests_are_of_the_bytes_that_are_multiplied_by(model: Any, tmp_path: Path) -> None:
    import hashlib

    adapters, weights = Adapters(model), pair(1)
    number = adapters.load("v1", write_adapter(tmp_path / "v1", weights))
    sha = {k[-1]: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in weights.items()}
    assert adapters.digests(number) == {
        "source": "active",
        "dtype": "float32",
        "digests": {"one.A": sha["A"], "one.B": sha["B"]},
        "stray": [],
    }
    model["one"].matrices[number][1][0, 0] += 1
    assert adapters.digests(number)["digests"]["one.B"] != sha["B"]
    assert "not in this worker" in adapters.digests(99)["error"]


def test_alpha_is_applied(model: Any, tmp_path: Path) -> None:
    adapters, weights, x = Adapters(model), pair(1), torch.randn(5, 4)
    plain = model["one"](x)
    number = adapters.load("v1", write_adapter(tmp_path / "v1", weights, rank=2, alpha=6))
    with adapters.using(number):
        change = 3 * x @ weights["one.lora_A"].T @ weights["one.lora_B"].T
        torch.testing.assert_close(model["one"](x), plain + change, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"three.lora_A": torch.zeros(2, 4), "three.lora_B": torch.zeros(3, 2)}, "no layer three"),
        ({"norm.lora_A": torch.zeros(2, 4), "norm.lora_B": torch.zeros(4, 2)}, "not a linear layer"),
        ({"one.lora_A": torch.zeros(2, 5), "one.lora_B": torch.zeros(3, 2)}, "do not fit"),
        ({"one.lora_A": torch.zeros(2, 4)}, "only one"),
        ({"one.magnitude": torch.zeros(2)}, "not the name"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    model: Any, tmp_path: Path, tensors: dict[str, torch.Tensor], says: str
) -> None:
    adapters = Adapters(model)
    with pytest.raises(AdapterRefused, match=says):
        adapters.load("v1", write_adapter(tmp_path / "v1", tensors))
    assert adapters.numbers == set() and adapters.names == {}


# Turns


class CountingModel:
    """Token k of an answer is k + 1 for certain; token 9 ends it. It can be held, and told to fail."""

    ends = frozenset({9})

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.fails = False

    def read(self, prompts: Sequence[Sequence[int]], adapter: int | None) -> tuple[list[int], torch.Tensor]:
        self.may_go.wait()
        self.steps.append([p[0] for p in prompts])
        if self.fails:
            raise RuntimeError("out of memory")
        return [p[0] for p in prompts], self._logits([0] * len(prompts))

    def step(self, reading: list[int], tokens: Sequence[int], adapter: int | None) -> tuple[list[int], torch.Tensor]:
        self.may_go.wait()
        self.steps.append(list(reading))
        return reading, self._logits(tokens)

    def keep(self, reading: list[int], rows: Sequence[int]) -> list[int]:
        return [reading[row] for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(str, ids))

    @staticmethod
    def _logits(tokens: Sequence[int]) -> torch.Tensor:
        logits = torch.zeros(len(tokens), 12)
        for row, token in enumerate(tokens):
            logits[row, min(token + 1, 11)] = 50
        return logits


class Caller:
    """Asks, and gathers what is emitted."""

    def __init__(
        self, first: int, *, tokens: int = 4, n: int = 1, adapter: int | None = None, priority: int = 0
    ) -> None:
        self.events: list[Emitted] = []
        self.over = threading.Event()
        sampling = Sampling(max_tokens=tokens)
        self.asked = Asked([first], n, sampling, adapter, priority, self._emit)

    def _emit(self, event: Emitted) -> None:
        self.events.append(event)
        if not isinstance(event, Drawn):
            self.over.set()

    def tokens(self, index: int = 0) -> list[int]:
        assert self.over.wait(20)
        return [event.token for event in self.events if isinstance(event, Drawn) and event.index == index]


@pytest.fixture
def counting() -> CountingModel:
    return CountingModel()


@pytest.fixture
def scheduler(counting: CountingModel) -> Iterator[Scheduler]:
    made = Scheduler(counting, max_rows=4)  # type: ignore[arg-type]
    yield made
    counting.may_go.set()
    made.close()


def held(counting: CountingModel, scheduler: Scheduler, callers: Sequence[Caller]) -> None:
    """Submit all before the model may do anything but wait."""
    counting.may_go.clear()
    blocker = threading.Event()
    scheduler.call(blocker.wait, priority=-1000)
    for caller in callers:
        scheduler.submit(caller.asked)
    counting.may_go.set()
    blocker.set()


def test_answers_end_at_their_limit_or_at_the_end_token(scheduler: Scheduler) -> None:
    short, long = Caller(1, tokens=3, n=2), Caller(2, tokens=50)
    for caller in (short, long):
        scheduler.submit(caller.asked)
    assert short.tokens(0) == short.tokens(1) == [1, 2, 3]
    assert long.tokens() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    reasons = {e.finish_reason for e in short.events + long.events if isinstance(e, Drawn)}
    assert reasons == {None, "length", "stop"}
    assert [short.events[-1], long.events[-1]] == [None, None] and short.events.count(None) == 1


def test_requests_that_go_together_are_drawn_in_step_and_the_batch_shrinks(
    counting: CountingModel, scheduler: Scheduler
) -> None:
    callers = [Caller(1, tokens=2), Caller(2, tokens=4), Caller(3, tokens=1)]
    held(counting, scheduler, callers)
    for caller in callers:
        caller.tokens()
    assert counting.steps == [[1, 2, 3], [1, 2], [2], [2]]
    assert scheduler.batches == 0


def test_adapters_and_priorities_are_not_mixed_and_the_row_limit_holds(
    counting: CountingModel, scheduler: Scheduler
) -> None:
    callers = [Caller(1, n=3), Caller(2, n=2), Caller(3, adapter=7), Caller(4, priority=10)]
    held(counting, scheduler, callers)
    for caller in callers:
        caller.tokens()
    assert {tuple(step) for step in counting.steps} == {(1, 1, 1), (2, 2), (3,), (4,)}


def test_a_chat_goes_before_rollouts_in_progress(counting: CountingModel, scheduler: Scheduler) -> None:
    rollouts = [Caller(100 + i, tokens=8, n=4, priority=10) for i in range(6)]
    for rollout in rollouts:
        scheduler.submit(rollout.asked)
    deadline = time.monotonic() + 10
    while not counting.steps and time.monotonic() < deadline:
        time.sleep(0.001)
    chat = Caller(1, tokens=8)
    held(counting, scheduler, [chat])
    chat.tokens()
    seen = [step[0] for step in counting.steps]
    first = seen.index(1)
    assert seen[first : first + 8] == [1] * 8, "token by token, before anything else"
    for rollout in rollouts:
        assert rollout.tokens() == list(range(1, 9))


def test_equals_take_turns(counting: CountingModel, scheduler: Scheduler) -> None:
    callers = [Caller(1, tokens=6, adapter=1), Caller(2, tokens=6, adapter=2)]
    held(counting, scheduler, callers)
    for caller in callers:
        caller.tokens()
    assert [step[0] for step in counting.steps[:6]] in ([1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 2, 1])


def test_who_leaves_is_dropped_and_the_others_go_on(counting: CountingModel, scheduler: Scheduler) -> None:
    leaver, stayer = Caller(1, tokens=10_000), Caller(2, tokens=6)
    leaver.asked.sampling = Sampling(max_tokens=10_000, ignore_eos=True)
    held(counting, scheduler, [leaver, stayer])
    stayer.tokens()
    scheduler.cancel(leaver.asked)
    scheduler.call(lambda: None).result(10)
    steps = len(counting.steps)
    scheduler.call(lambda: None).result(10)
    assert scheduler.batches == 0 and len(counting.steps) == steps
    waiting = Caller(3)
    counting.may_go.clear()
    scheduler.submit(waiting.asked)
    scheduler.cancel(waiting.asked)
    counting.may_go.set()
    scheduler.call(lambda: None).result(10)
    assert [3] not in counting.steps or not waiting.over.is_set()


def test_a_failure_reaches_its_callers_and_the_next_ones_are_served(
    counting: CountingModel, scheduler: Scheduler
) -> None:
    counting.fails = True
    unlucky = Caller(1)
    scheduler.submit(unlucky.asked)
    assert unlucky.over.wait(10)
    assert str(unlucky.events[-1]) == "out of memory"
    with pytest.raises(RuntimeError, match="refused"):
        scheduler.call(_refuse).result(10)
    counting.fails = False
    lucky = Caller(2)
    scheduler.submit(lucky.asked)
    assert lucky.tokens() == [1, 2, 3, 4]


def _refuse() -> None:
    raise RuntimeError("refused")


def test_the_queue_is_bounded(counting: CountingModel, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit_server.engine.hf.scheduler.MAX_WAITING", 2)
    counting.may_go.clear()
    scheduler.submit(Caller(0).asked)
    deadline = time.monotonic() + 10
    while scheduler._waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    for number in (1, 2):
        scheduler.submit(Caller(number).asked)
    with pytest.raises(QueueFull):
        scheduler.submit(Caller(3).asked)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_models_thread_dies_it_is_said(counting: CountingModel) -> None:
    died = threading.Event()
    scheduler = Scheduler(counting, on_death=died.set)  # type: ignore[arg-type]

    def emit(_: Emitted) -> None:
        raise KeyError("a fault of ours")

    scheduler.submit(Asked([1], 1, Sampling(max_tokens=3), None, 0, emit))
    assert died.wait(10) and not scheduler.is_alive
    scheduler.close()
