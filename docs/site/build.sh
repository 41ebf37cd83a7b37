#!/usr/bin/env bash
# Build the documentation site into dist/docs/site (or DOCS_OUT/site), strictly: a broken link or anchor fails.
# The builder is installed once into .venv/docs, apart from the locked stack; the build itself fetches nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "${DOCS_OUT:-dist/docs}")
env=$(realpath -m "${DOCS_ENV:-.venv/docs}")
lock=requirements/docs.txt
die() { printf 'docs: %s\n' "$1" >&2; exit 1; }

install() {
  python=${PYTHON:-}
  [ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
  "$python" -m venv "$env"
  "$env/bin/python" -m pip --disable-pip-version-check install --quiet --require-hashes -r "$lock" \
    || die "could not install $lock: see the lines above"
  cp "$lock" "$env/installed.txt"
}
mkdir -p "$(dirname "$env")"
exec 9>"$env.lock"
flock 9 # two builds at once: one installs
cmp --silent "$lock" "$env/installed.txt" || install
exec 9>&-

"$env/bin/python" docs/site/stage.py "$out"
said=$(cd "$out" && "$env/bin/zensical" build --strict --clean 2>&1) || { printf '%s\n' "$said" >&2; exit 1; }
printf 'docs: %s\n' "$out/site/index.html"
