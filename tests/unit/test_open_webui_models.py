"""What Open WebUI's model function asks Plaudit. tests/integrations drives it in the real Open WebUI."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "clients" / "open-webui" / "plaudit_models.py"
BODY = {
    "model": "plaudit.policy@v42",
    "messages": [{"role": "user", "content": "Hello?", "output": [], "files": []}],
    "stream": True,
    "temperature": 0.5,
    "features": {"web_search": False},
    "chat_id": "c",
}


@pytest.fixture
def pipe() -> Any:
    spec = importlib.util.spec_from_file_location("plaudit_models", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Pipe()


def test_an_answer_is_marked_with_the_message_that_it_becomes(pipe: Any) -> None:
    assert pipe.request(BODY, "ada", "m-1", None) == {
        "model": "policy@v42",
        "messages": [{"role": "user", "content": "Hello?"}],
        "stream": True,
        "temperature": 0.5,
        "user": "ada",
        "metadata": {"open_webui_message": "m-1"},
    }


@pytest.mark.parametrize(("message", "task"), [("m-1", "title_generation"), (None, None)])
def test_what_is_no_answer_to_anybody_is_not_stored(pipe: Any, message: str | None, task: str | None) -> None:
    asked = pipe.request(BODY, "ada", message, task)
    assert asked["store"] is False
    assert "metadata" not in asked


def test_consent_can_be_withheld(pipe: Any) -> None:
    assert "train" not in pipe.request(BODY, "ada", "m-1", None)
    pipe.valves.learn = False
    assert pipe.request(BODY, "ada", "m-1", None)["train"] is False


def test_the_models_on_offer(pipe: Any) -> None:
    pipe.valves.models = "policy, policy@base,"
    assert [model["id"] for model in pipe.pipes()] == ["policy", "policy@base"]
