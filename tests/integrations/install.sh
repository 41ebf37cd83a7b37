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

uv=.venv/with/uv/bin/uv # pip needs minutes for what uv does in seconds
if [ ! -x "$uv" ]; then
  "$python" -m venv .venv/with/uv
  .venv/with/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
fi
into() { "$uv" pip install --quiet --python "$folder/bin/python" "$@"; }
"$uv" venv --quiet --clear --python "$python" "$folder"
if [ "$name" = open-webui ]; then
  # All of its dependencies are gigabytes, torch among them. It brings a list of those that it cannot do without.
  into --no-deps -r "$wanted"
  into -r "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/requirements-slim.txt"
else
  into -r "$wanted"
fi
cp "$wanted" "$folder/.installed"
