"""Dockerfile and compose.yaml name only what exists, and their commands run.

Not a substitute for building the images: it is what can be shown where no container engine is at hand.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from plaudit_server.routes.pages import BUILT
from plaudit_server.settings import Settings
from plaudit_trainer.config import TrainerConfig

ROOT = Path(__file__).parents[2]
INSTRUCTION = re.compile(r"^([A-Z]+)\s+(.*)$")


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [match.groups() for line in lines if (match := INSTRUCTION.match(line.strip()))]  # type: ignore[misc]


def commands() -> list[list[str]]:
    return [json.loads(value) for name, value in instructions() if name == "CMD"]


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def as_here(command: list[str]) -> list[str]:
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def test_every_copied_path_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name, value in instructions():
        if name == "COPY":
            *sources, _target = value.split()
            if sources[0].startswith("--from="):  # what another stage made: see below
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source.rstrip("/") not in ignored


def test_every_installed_script_exists_and_is_executable():
    scripts = re.findall(r"(requirements/\S+\.sh)", (ROOT / "Dockerfile").read_text())
    assert scripts
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK)
        assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


def test_the_targets_are_server_and_trainer():
    names = [value.split(" AS ")[1] for name, value in instructions() if name == "FROM"]
    assert names == ["pages", "base", "server", "trainer"]


def test_the_pages_are_taken_from_where_the_build_puts_them():
    config = (ROOT / "clients" / "web" / "vite.config.js").read_text()
    (built,) = re.findall(r'outDir: "([^"]+)"', config)
    (copied,) = [value.split() for name, value in instructions() if name == "COPY" and "--from=" in value]
    folders = [value for name, value in instructions() if name == "WORKDIR"]
    assert copied == ["--from=pages", os.path.normpath(f"{folders[0]}/{built}") + "/", "server/plaudit_server/pages/"]
    assert (ROOT / copied[2]).resolve() == BUILT.resolve()


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_runs_outside_a_container(command: list[str]):
    done = subprocess.run([*as_here(command), "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, *_args):
        pass


def test_the_health_check_passes_on_a_ready_server_and_fails_on_none():
    (check,) = [json.loads(v.split("CMD ", 1)[1]) for n, v in instructions() if n == "HEALTHCHECK"]
    with HTTPServer(("127.0.0.1", 0), _Ready) as server:
        port = server.server_address[1]
        here = [part.replace(":8000/", f":{port}/") for part in as_here(check)]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert subprocess.run(here, check=False).returncode == 0
        server.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = [part.replace(":8000/", f":{free.getsockname()[1]}/") for part in as_here(check)]
        assert subprocess.run(nobody, check=False, stderr=subprocess.DEVNULL).returncode != 0


def test_compose_builds_targets_that_exist_and_mounts_volumes_that_exist():
    targets = {value.split(" AS ")[1] for name, value in instructions() if name == "FROM"}
    document = compose()
    for name, service in document["services"].items():
        if name == "database":
            assert service["profiles"] == ["postgres"]  # only who asks for it gets it
        else:
            assert service["build"]["target"] in targets
            assert (ROOT / service["build"]["context"] / "Dockerfile").exists()
        for volume in service["volumes"]:
            assert volume.split(":")[0] in document["volumes"]


def test_compose_sets_only_settings_that_exist():
    known = {f"PLAUDIT_{name.upper()}" for name in Settings.model_fields}
    known |= {f"PLAUDIT_TRAINER_{name.upper()}" for name in TrainerConfig.model_fields}
    for service in compose()["services"].values():
        assert {name for name in service["environment"] if name.startswith("PLAUDIT_")} <= known


def test_production_must_say_whether_exchanges_may_be_learnt_from():
    assert ":?" in compose()["services"]["server"]["environment"]["PLAUDIT_CONSENT_DEFAULT"]
