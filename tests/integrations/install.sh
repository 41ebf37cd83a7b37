#!/usr/bin/env bash
# Install a package that Plaudit integrates with into an environment of its own, .venv/with/NAME. Idempotent.
#   install.sh NAME [PYTHON]      NAME: gradio, chainlit, open-webui
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1
python=${2:-.venv/bin/python}
wanted=requirements/with-$name.txt
folder=.venv/with/$name
mkdir -p .venv/with
exec 9>.venv/with/.lock && flock 9 # two test workers, one installation
cmp -s "$wanted" "$folder/.installed" && exit 0

rm -rf "$folder"
"$python" -m venv "$folder"
# Everything is pinned, and all of Open WebUI's dependencies would be gigabytes, torch among them: what is listed suffices.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$wanted"
cp "$wanted" "$folder/.installed"
