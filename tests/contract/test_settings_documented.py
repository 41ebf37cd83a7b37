"""What can be set, measured and answered is documented; a word left out fails here."""

from pathlib import Path

import pytest

from plaudit_server import errors
from plaudit_server.app import create_app
from plaudit_server.settings import Settings
from tests.support.metrics import exported

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def lines(name: str) -> list[str]:
    return (REFERENCE / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting(name: str) -> None:
    field = Settings.model_fields[name]
    row = f"| `PLAUDIT_{name.upper()}` |"
    (found,) = [line for line in lines("settings.md") if line.startswith(row)]
    assert field.description
    assert field.description in found.replace("\\|", "|")
    default = "unset" if field.default is None else str(field.get_default(call_default_factory=True))
    assert f"| `{default}` |" in found, f"{name}: the default is {default}"


def test_no_setting_that_does_not_exist() -> None:
    documented = {line.split("`")[1] for line in lines("settings.md") if line.startswith("| `PLAUDIT_")}
    ours = {name for name in documented if not name.startswith("PLAUDIT_TRAINER_")}
    assert ours == {f"PLAUDIT_{name.upper()}" for name in Settings.model_fields}


def test_every_metric_and_none_that_does_not_exist() -> None:
    documented = [line for line in lines("metrics.md") if line.startswith("| `")]
    assert documented == [
        f"| `{metric.name}` | {metric.kind} | {metric.label_words} | {metric.description} |" for metric in exported()
    ]


def test_every_error() -> None:
    def tree(kind: type[errors.PlauditError]) -> set[type[errors.PlauditError]]:
        return {kind} | {
            each for child in kind.__subclasses__() if child.__module__ == errors.__name__ for each in tree(child)
        }

    documented = {line.split("`")[1] for line in lines("errors.md") if line.startswith("| `")}
    assert documented >= {kind.__name__ for kind in tree(errors.PlauditError)}


def test_every_route() -> None:
    paths = create_app(Settings.model_construct()).openapi()["paths"]
    promised = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert {line.split("`")[1] for line in lines("routes.md") if line.startswith("| `")} == promised
