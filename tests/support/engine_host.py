"""Run as a script: a process that owns a VllmEngine and writes its state, a JSON line a second, to a file.

python -m tests.support.engine_host <data> <base> <state file> <version folder> <parent> <manifest sha256>
"""

import asyncio
import json
import sys
from pathlib import Path

from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.settings import Settings


async def main(data: Path, base: Path, state: Path, ref: AdapterRef) -> None:
    engine = VllmEngine(Settings(data=data, engine_kv_cache_gib=1), base)
    await engine.start()
    installed = False
    while True:
        if engine.is_ready() and not installed:
            installed = (await engine.install(ref)).passed
        health = engine.health()[0]
        said = {"state": health.state, "resident": health.resident, "restarts": health.restarts, "why": health.detail}
        _write(state, json.dumps(said))
        await asyncio.sleep(0.1)


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    data, base, state, location, parent, digest = sys.argv[1:]
    asyncio.run(main(Path(data), Path(base), Path(state), AdapterRef(Path(location).name, parent, location, digest)))
