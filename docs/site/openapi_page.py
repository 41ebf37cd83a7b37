"""`clients/openapi.json` as one static page of markdown: nothing is drawn by scripts, nothing is fetched."""

from collections.abc import Iterator
from typing import Any

INTRODUCTION = """# OpenAPI reference

Made of [`clients/openapi.json`](../files/clients/openapi.json) whenever the site is built; a test holds that file to
the server. A running server shows the same under `/docs`, and gives it as `/openapi.json`. Roles, limits and bounds:
[routes](routes.md). Errors: [errors](errors.md).
"""
Json = dict[str, Any]


def render(document: Json) -> str:
    """The whole page."""
    lines = [INTRODUCTION, document["info"]["description"], ""]
    for tag, operations in by_tag(document).items():
        lines += [f"## {tag.capitalize()}", ""]
        for method, path, operation in operations:
            lines += operation_lines(method, path, operation)
    lines += ["## Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += schema_lines(name, schema)
    return "\n".join(lines) + "\n"


def by_tag(document: Json) -> dict[str, list[tuple[str, str, Json]]]:
    """Operations under their first tag, in the document's order."""
    found: dict[str, list[tuple[str, str, Json]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            found.setdefault(tag, []).append((method.upper(), path, operation))
    return dict(sorted(found.items()))


def operation_lines(method: str, path: str, operation: Json) -> Iterator[str]:
    """One operation: what it does, who may, what it takes, what it answers."""
    yield from (f"### {method} {path} {{ #{operation['operationId']} }}", "", f"**{operation.get('summary', '')}.**")
    yield from (operation.get("description", ""), "", f"Roles: {roles(operation)}.", "")
    parameters = operation.get("parameters", [])
    if parameters:
        yield from ("| parameter | in | type | |", "|---|---|---|---|")
        for one in parameters:
            yield row(code(one["name"]) + required(one), one["in"], kind(one["schema"]), described(one))
        yield ""
    if body := operation.get("requestBody"):
        yield from (f"Body: {kind(json_schema(body))}", "")
    yield from ("| status | answer | |", "|---|---|---|")
    for status, answer in operation["responses"].items():
        yield row(status, kind(json_schema(answer)), answer.get("description", ""))
    yield ""


def schema_lines(name: str, schema: Json) -> Iterator[str]:
    """One schema with its fields."""
    yield from (f"### {name} {{ #schema-{name} }}", "", schema.get("description", ""), "")
    fields = schema.get("properties", {})
    if not fields:
        yield from (kind(schema), "")
        return
    yield from ("| field | type | default | |", "|---|---|---|---|")
    for field, value in fields.items():
        mark = " (required)" if field in schema.get("required", []) else ""
        default = code(str(value["default"])) if value.get("default") is not None else ""
        yield row(code(field) + mark, kind(value), default, described(value))
    yield ""


def roles(operation: Json) -> str:
    """Who may call it."""
    requirements = operation.get("security", [])
    named = requirements[0].get("key", []) if requirements else []
    return ", ".join(code(role) for role in named) or "no key is asked for"


def json_schema(part: Json) -> Json:
    """The schema of a body, empty where it has none."""
    content = part.get("content", {})
    found: Json = next((media.get("schema", {}) for media in content.values()), {})
    return found


def kind(schema: Json) -> str:
    """A schema in a few words; other schemas are links."""
    if not schema:
        return ""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#schema-{name})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(kind(one) or "anything" for one in schema[word])
    if "enum" in schema or "const" in schema:
        return " ".join(code(str(one)) for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {})) or 'anything'}"
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    return " ".join([str(schema.get("format") or schema.get("type") or "anything"), *bounds])


BOUNDS = {
    "minimum": "≥",
    "maximum": "≤",
    "exclusiveMinimum": ">",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "maxLength": "length ≤",
}


def described(part: Json) -> str:
    """What a field or parameter is for."""
    return str(part.get("description", ""))


def required(parameter: Json) -> str:
    """A mark behind the name of a parameter that must be given."""
    return " (required)" if parameter.get("required") else ""


def code(text: str) -> str:
    """As code."""
    return f"`{text}`"


def row(*cells: str) -> str:
    """A row of a table; a bar or a line break in a cell would end it."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
