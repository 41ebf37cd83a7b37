"""The documentation site: built strictly, complete, and without anything from elsewhere."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["']?(https?:)?//""")
SITE_LINK = re.compile(r"\]\(([^)]*)\)")


def build(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = dict(os.environ) | {"DOCS_OUT": str(out)} | environment
    command = [str(ROOT / "docs" / "site" / "build.sh")]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "out"
    done = build(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "site"


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    written = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")}
    built = {p.relative_to(site) for p in site.rglob("*.html")}
    assert written <= built
    assert {Path("index.html"), Path("contributing.html"), Path("changelog.html"), Path("zh.html")} <= built


def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f'href="./{page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()}"' in home, page


def test_nothing_is_fetched_from_anybody(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not FETCHED.findall(page.read_text(encoding="utf-8")), page


def test_the_api_page_has_every_operation_and_schema(site: Path) -> None:
    document = json.loads((ROOT / "clients" / "openapi.json").read_text(encoding="utf-8"))
    page = (site / "reference" / "openapi.html").read_text(encoding="utf-8")
    for operations in document["paths"].values():
        assert {f'id="{op["operationId"]}"' for op in operations.values()} <= set(re.findall(r'id="[^"]+"', page))
    assert {f'id="schema-{name}"' for name in document["components"]["schemas"]} <= set(re.findall(r'id="[^"]+"', page))


def small_root(folder: Path, text: str) -> Path:
    """A repository with one page."""
    for name, words in {"README.md": f"# Top\n\n{text}\n", "clients/openapi.json": "", "docs/a.md": "# A\n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(words, encoding="utf-8")
    empty = {"info": {"description": ""}, "paths": {}, "components": {"schemas": {}}}
    (folder / "clients" / "openapi.json").write_text(json.dumps(empty), encoding="utf-8")
    for name in ("routes.md", "errors.md"):  # the page of the API links to them
        (folder / "docs" / "reference").mkdir(exist_ok=True)
        (folder / "docs" / "reference" / name).write_text("# X\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[gone](docs/nothing.md)", "docs/nothing.md is no file"),
        ("[gone](docs/a.md#nowhere)", "anchor does not exist"),
        ("[outside](../secret.md)", "../secret.md is no file"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, site: Path, text: str, complaint: str) -> None:
    done = build(tmp_path / "out", PLAUDIT_DOCS_ROOT=str(small_root(tmp_path / "root", text)))
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_link_to_source_is_a_copy_and_one_in_code_stays_as_it_is(tmp_path: Path, site: Path) -> None:
    root = small_root(tmp_path / "root", "[a](docs/a.md#a) [code](x.py)\n\n```text\n[not](a/link)\n```")
    (root / "x.py").write_text("1\n", encoding="utf-8")
    done = build(tmp_path / "out", PLAUDIT_DOCS_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "site" / "files" / "x.py.txt").read_text(encoding="utf-8") == "1\n"
    staged = (tmp_path / "out" / "source" / "index.md").read_text(encoding="utf-8")
    assert SITE_LINK.findall(staged) == ["a.md#a", "files/x.py.txt", "a/link"]
