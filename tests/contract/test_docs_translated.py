"""A translation has the code, the headings and the links of its original."""

import re
from pathlib import Path

import pytest

from tests.support.docs_blocks import ROOT, blocks_in, pages

TRANSLATED = [page for page in pages() if page.name.endswith(".zh.md")]
COMMENT = re.compile(r"\s*#.*$", re.M)


def original(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh.md", ".md"))


def code(text: str) -> list[tuple[str, str]]:
    """The blocks, without the comments of shell, which may be translated."""
    found = [(block.language, block.text) for block in blocks_in(text, "")]
    return [(language, COMMENT.sub("", text) if language == "sh" else text) for language, text in found]


def test_what_was_promised_is_translated() -> None:
    promised = {ROOT / "README.zh.md", ROOT / "docs" / "tutorial" / "first-loop.zh.md"}
    assert promised <= set(TRANSLATED)


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_the_code_is_that_of_the_original(page: Path) -> None:
    ours, theirs = (each.read_text(encoding="utf-8") for each in (page, original(page)))
    assert code(ours) == code(theirs), f"{page.name} is behind {original(page).name}"


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_each_links_to_the_other(page: Path) -> None:
    assert f"]({original(page).name})" in page.read_text(encoding="utf-8")
    assert f"]({page.name})" in original(page).read_text(encoding="utf-8")


def test_a_changed_command_is_noticed_and_a_translated_comment_is_not() -> None:
    ours = "```sh\nmake run # go\n```\n"
    assert code(ours) == code("```sh\nmake run   # 走\n```\n")
    assert code(ours) != code("```sh\nmake test # go\n```\n")
    assert code(ours) != code("")
