"""The SDK reaches every operation that the committed OpenAPI document has, with every field of it."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from plaudit import Plaudit
from plaudit._binding import Resource, endpoint, following, streaming
from plaudit.resources.chat import ChatOptions
from tests.support.sdk_harness import ANSWER_ID

DOCUMENT = json.loads((Path(__file__).parents[2] / "clients" / "openapi.json").read_text(encoding="utf-8"))
Operation = tuple[str, str]
OPERATIONS: list[Operation] = [(verb.upper(), path) for path, verbs in DOCUMENT["paths"].items() for verb in verbs]

ARGUMENTS = {
    "messages": "Hello?",
    "response_id": ANSWER_ID,
    "chosen": ANSWER_ID,
    "rejected": f"{ANSWER_ID}.1",
    "value": "up",
    "type": "copy",
    "items": [{"response_id": ANSWER_ID, "value": 1}],
    "name": "v1",
    "version": "v1",
    "candidate": "v1",
    "steps": [0.5],
    "roles": ["chat"],
    "url": "http://a",
    "prompts": [{"prompt_ids": [1]}],
    "sequences": [{"prompt_ids": [1], "response_ids": [2]}],
    "run_id": "run_1",
    "batch_ids": ["b"],
    "parent": "base",
    "location": "/v",
    "manifest_sha256": "0" * 64,
    "outcome": "candidate",
    "gate": {"passed": True, "checks": []},
}
"""Something valid for each argument that must be given; "x" does for the others."""

PASSED_ON = {"stream", "max_completion_tokens", "safety_identifier"}
"""Of a chat: by `chat.stream`, `max_tokens` and `user`, or as they are by `extra_body`."""


def _methods() -> dict[str, Any]:
    with Plaudit("http://127.0.0.1:9", "plk_x") as client:
        groups = {"": client} | {f"{n}.": g for n, g in vars(client).items() if isinstance(g, Resource)}
    return {
        prefix + name: (group, value)
        for prefix, group in groups.items()
        for kind in type(group).__mro__
        for name, value in vars(kind).items()
        if isinstance(value, endpoint | streaming | following)
    }


def _sends(group: Any, method: Any) -> Operation:
    """The operation that a method calls."""
    parameters = list(inspect.signature(method.build).parameters.values())[1:]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    spoken = {"value"} & {p.name for p in parameters}
    call = method.build(group, **{name: ARGUMENTS.get(name, "x") for name in {*needed, *spoken}})
    for verb, path in OPERATIONS:
        if verb == call.method and re.fullmatch(re.sub(r"\\{\w+\\}", "[^/:]+", re.escape(path)), call.path):
            exact = (verb, call.path)
            return exact if exact in OPERATIONS else (verb, path)
    raise AssertionError(f"{call.method} {call.path} is no operation of the document")


REACHED: dict[Operation, list[Any]] = {}
for _group, _method in _methods().values():
    REACHED.setdefault(_sends(_group, _method), []).append(_method)


def _fields(operation: Operation) -> set[str]:
    """What the operation takes in its query, its `if-match` header and its body."""
    described = DOCUMENT["paths"][operation[1]][operation[0].lower()]
    given = {p["name"].replace("-", "_") for p in described.get("parameters", []) if p["in"] != "path"}
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = body.get("$ref", "").rpartition("/")[2]
    return given | set(DOCUMENT["components"]["schemas"].get(name, {}).get("properties", {}))


def _takes(method: Any) -> set[str]:
    names = set(inspect.signature(method.build).parameters)
    return names | set(ChatOptions.__annotations__) | PASSED_ON if "options" in names else names


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_each_operation_has_a_method_that_takes_all_its_fields(operation: Operation) -> None:
    assert operation in REACHED, "the SDK has no method for it: add one to plaudit/resources"
    assert _fields(operation) - set().union(*map(_takes, REACHED[operation])) == set()


def test_the_document_was_read() -> None:
    assert ("POST", "/v1/feedback/t/{token}") in OPERATIONS
    assert "correction" in _fields(("POST", "/v1/feedback"))
