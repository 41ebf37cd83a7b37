"""The TypeScript SDK: its types are the committed OpenAPI document's, and it works against the real server."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.support import server as support

SDK = Path(__file__).parents[2] / "clients" / "typescript"


def test_the_types_are_those_of_the_document(node_environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["npm", "run", "--silent", "drift"],
        cwd=SDK,
        env=node_environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, (
        f"the API changed: run `npm run generate` in clients/typescript\n{done.stdout}{done.stderr}"
    )


async def test_its_own_tests_and_those_against_the_real_server(
    tmp_path: Path, node_environment: dict[str, str]
) -> None:
    # the SDK's tests see that the server asks for a comparison
    async with support.serving(tmp_path, compare_share=1) as harness, support.listening(harness.app) as url:
        version = await harness.publish()
        key = (harness.settings.data / "admin.key").read_text(encoding="ascii").strip()
        given = node_environment | {
            "PLAUDIT_TEST_URL": url,
            "PLAUDIT_TEST_KEY": key,
            "PLAUDIT_TEST_VERSION": version,
        }
        code, said = await run_node("npm", "test", "--silent", folder=SDK, env=given)
    assert code == 0, said
    assert "# skipped 0" in said


async def run_node(*command: str, folder: Path, env: dict[str, str]) -> tuple[int | None, str]:
    """A child's exit code and what it said; the server in this process goes on meanwhile."""
    child = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), timeout=240)
    except TimeoutError:
        child.kill()
        pytest.fail(f"{' '.join(command)} did not end")
    return child.returncode, said.decode()
