"""A misspelt setting is told; what belongs to others is left alone."""

import pytest

from plaudit.environment import unknown_variable

KNOWN = {"PORT", "HOST"}


@pytest.mark.parametrize("names", [[], ["PLAUDIT_PORT"], ["PLAUDIT_PORT", "PATH", "XPLAUDIT_PROT"]])
def test_known_names_and_those_of_others_pass(names: list[str]) -> None:
    assert unknown_variable(names, "PLAUDIT_", KNOWN) is None


def test_the_nearest_name_is_offered() -> None:
    assert "did you mean PLAUDIT_PORT?" in (unknown_variable(["PLAUDIT_PROT"], "PLAUDIT_", KNOWN) or "")


def test_with_no_near_name_it_says_where_to_look() -> None:
    assert unknown_variable(["PLAUDIT_ZEBRA"], "PLAUDIT_", KNOWN) == (
        "PLAUDIT_ZEBRA: there is no such setting; see docs/reference, or unset it"
    )
