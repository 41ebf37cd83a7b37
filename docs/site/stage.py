"""Stage the pages of the site: `stage.py FOLDER` fills FOLDER/source and writes FOLDER/zensical.toml.

Files stay where they are. A link that leaves `docs/` is pointed at a staged copy of what it names, so that the site is
whole by itself; a link to nothing ends the staging. Standard library only.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from openapi_page import render  # noqa: E402  # it stands beside this file, wherever that is

ROOT = HERE.parents[1]
RENAMED = {
    "README.md": "index.md",
    "README.zh.md": "zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SECTIONS = (
    ("Tutorial", "tutorial"),
    ("Who are you?", "personas"),
    ("How-to", "howto"),
    ("Reference", "reference"),
    ("Explanation", "explanation"),
    ("Decisions", "adr"),
)
FENCE = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2[ \t]*$", re.M | re.S)
LINK = re.compile(r"(?<=\]\()([^)#\s]*)((?:#[^)\s]*)?)(?=\))")


class BrokenLink(Exception):
    """A page links to what does not exist."""


def pages(root: Path) -> Iterator[Path]:
    """The markdown files of the site, relative to `root`."""
    yield from (Path(name) for name in RENAMED if (root / name).is_file())
    yield from sorted(p.relative_to(root) for p in (root / "docs").rglob("*.md") if "site" not in p.parts[-2:])


def place(path: Path) -> Path:
    """Where in the site a file of the repository lies."""
    if path.as_posix() in RENAMED:
        return Path(RENAMED[path.as_posix()])
    if path.parts[0] == "docs":
        return Path(*path.parts[1:])
    return Path("files") / path.with_name(path.name + (".txt" if path.suffix not in {".json", ".md"} else ""))


def outside_fences(text: str) -> Iterator[tuple[bool, str]]:
    """The text in pieces, each with whether links in it are links."""
    end = 0
    for fence in FENCE.finditer(text):
        yield True, text[end : fence.start()]
        yield False, fence.group()
        end = fence.end()
    yield True, text[end:]


class Stage:
    """Copies pages, and whatever they link to, into a folder."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root = root
        self.source = source

    def page(self, path: Path) -> None:
        """Copy one page with its links pointed to where their targets lie in the site."""
        text = (self.root / path).read_text(encoding="utf-8")
        parts = [self._linked(path, part) if links else part for links, part in outside_fences(text)]
        self._write(place(path), "".join(parts))

    def _linked(self, page: Path, text: str) -> str:
        def point(match: re.Match[str]) -> str:
            target, anchor = match.groups()
            if not target or re.match(r"[a-z]+:", target):
                return match.group()
            return self._target(page, target) + anchor

        return LINK.sub(point, text)

    def _target(self, page: Path, target: str) -> str:
        path = Path(os.path.normpath(page.parent / target))
        if path == Path("docs/reference/openapi.md"):
            found = place(path)  # made below, not kept
        elif path.parts[0] == ".." or not (self.root / path).is_file():
            raise BrokenLink(f"{page}: {target} is no file of this repository")
        else:
            found = place(path)
            if not (found.suffix == ".md" and found.parts[0] != "files"):
                self._copy(path, found)
        return Path(os.path.relpath(found, place(page).parent)).as_posix()

    def _copy(self, path: Path, to: Path) -> None:
        (self.source / to).parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".md":
            self._write(to, f"````markdown\n{(self.root / path).read_text(encoding='utf-8')}\n````\n")
        else:
            shutil.copyfile(self.root / path, self.source / to)

    def _write(self, to: Path, text: str) -> None:
        (self.source / to).parent.mkdir(parents=True, exist_ok=True)
        (self.source / to).write_text(text, encoding="utf-8")

    def api(self) -> None:
        """The page made of the OpenAPI document."""
        kept = Path("clients/openapi.json")
        self._copy(kept, place(kept))
        document = json.loads((self.root / kept).read_text(encoding="utf-8"))
        self._write(Path("reference/openapi.md"), render(document))


def navigation(source: Path) -> list[dict[str, object]]:
    """What the side shows: a page that is new in a folder is in its section by itself."""
    nav: list[dict[str, object]] = [{"Plaudit": "index.md"}]
    for title, folder in SECTIONS:
        found = sorted(p.relative_to(source).as_posix() for p in (source / folder).glob("*.md"))
        if found:
            nav.append({title: found})
    rest = [("Contributing", "contributing.md"), ("Changelog", "changelog.md"), ("中文", "zh.md")]
    return nav + [{title: name} for title, name in rest if (source / name).is_file()]


def toml(value: object) -> str:
    """A list, a table or a string in TOML's inline form."""
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def stage(root: Path, folder: Path) -> None:
    """Fill `folder` anew.

    Raises:
        BrokenLink: a page links to what does not exist.
    """
    source = folder / "source"
    shutil.rmtree(folder, ignore_errors=True)
    staging = Stage(root, source)
    staging.api()
    shutil.copyfile(HERE / "extra.css", source / "extra.css")
    for path in pages(root):
        staging.page(path)
    config = (HERE / "zensical.toml").read_text(encoding="utf-8")
    nav = f"nav = {toml(navigation(source))}"
    (folder / "zensical.toml").write_text(config.replace("# NAV", nav), encoding="utf-8")


if __name__ == "__main__":
    try:
        stage(Path(os.environ.get("PLAUDIT_DOCS_ROOT", ROOT)), Path(sys.argv[1]))
    except BrokenLink as error:
        sys.exit(f"docs: {error}")
