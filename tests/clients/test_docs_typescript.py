"""The TypeScript of the docs is type checked against the SDK, each block a module; scripts within HTML parse."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.docs_blocks import Block, all_blocks

CLIENTS = Path(__file__).parents[2] / "clients"
TYPESCRIPT = [block for block in all_blocks() if block.language == "ts"]
HTML = [block for block in all_blocks() if block.language == "html"]
GIVEN = {
    "client": "import('plaudit').Plaudit",
    "answer": "Awaited<ReturnType<import('plaudit').Plaudit['chat']['create']>>",
    "other": "Awaited<ReturnType<import('plaudit').Plaudit['chat']['create']>>",
    "id": "string",
    "batch_id": "string",
}
"""Names that a block takes for granted from the blocks before it."""
CONFIG = {
    "extends": "../../tsconfig.json",
    "compilerOptions": {"noEmit": True, "rootDir": ".", "noUnusedLocals": False, "types": ["node"]},
    "include": ["*.ts"],
}


def module(block: Block) -> str:
    """The block, behind declarations of what it does not declare itself."""
    own = set(re.findall(r"\b(?:const|let) (\w+)", block.text))
    lines = [f"declare const {name}: {kind};" for name, kind in GIVEN.items() if name not in own]
    imports = "" if 'from "plaudit"' in block.text else 'import { Plaudit } from "plaudit";\nvoid Plaudit;\n'
    return "\n".join([*lines, imports + block.text, "export {};", ""])


def checked(folder: Path, modules: dict[str, str], environment: dict[str, str]) -> str:
    """What the compiler says of modules within the SDK's package."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "tsconfig.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    for name, text in modules.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = ["npx", "--no-install", "tsc", "--project", str(folder)]
    package = CLIENTS / "typescript"
    done = subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


def test_typescript_is_what_the_sdk_takes(node_environment: dict[str, str]) -> None:
    modules = {f"{Path(b.page).parent.name}-{Path(b.page).stem}-{b.line}.ts": module(b) for b in TYPESCRIPT}
    assert len(modules) == len(TYPESCRIPT) > 0
    assert checked(CLIENTS / "typescript" / "build" / "docs", modules, node_environment) == ""


def test_typescript_that_is_wrong_is_told(node_environment: dict[str, str]) -> None:
    wrong = module(Block("x.md", 1, "ts", "await client.feedback.rate(answer.responseId, 'sideways');\n"))
    said = checked(CLIENTS / "typescript" / "build" / "docs-wrong", {"wrong.ts": wrong}, node_environment)
    assert "wrong.ts" in said
    assert "sideways" in said


class Seen(HTMLParser):
    """The scripts of a page, and the attributes of the web component."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.attributes: set[str] = set()
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and not any(name == "src" for name, _ in attrs)
        if tag == "plaudit-thumbs":
            self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


@pytest.mark.parametrize("block", HTML, ids=lambda block: f"{block.page}:{block.line}")
def test_html_has_scripts_that_parse_and_attributes_that_exist(
    block: Block, tmp_path: Path, node_environment: dict[str, str]
) -> None:
    seen = Seen(block.text)
    source = (CLIENTS / "widget" / "src" / "plaudit-thumbs.ts").read_text(encoding="utf-8")
    assert {name for name in seen.attributes if f'"{name}"' not in source} == set()
    for number, script in enumerate(seen.scripts):
        (tmp_path / f"{number}.js").write_text(script, encoding="utf-8")
        command = ["node", "--check", str(tmp_path / f"{number}.js")]
        done = subprocess.run(command, env=node_environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
    assert seen.scripts or seen.attributes
