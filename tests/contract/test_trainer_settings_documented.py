"""Every setting of the trainer has its row in docs/reference/trainer-settings.md, with its default and description."""

from pathlib import Path

import pytest

from plaudit_trainer.config import TrainerConfig

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trainer-settings.md"


def row(name: str) -> str:
    field = TrainerConfig.model_fields[name]
    default = "unset" if field.default is None else str(field.get_default(call_default_factory=True))
    description = (field.description or "").replace("|", "\\|")
    return f"| `PLAUDIT_TRAINER_{name.upper()}` | `{default}` | {description} |"


@pytest.mark.parametrize("name", TrainerConfig.model_fields)
def test_every_setting_of_the_trainer(name: str) -> None:
    assert TrainerConfig.model_fields[name].description
    assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_no_setting_that_the_trainer_does_not_have() -> None:
    documented = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `PLAUDIT_")]
    assert len(documented) == len(TrainerConfig.model_fields)
