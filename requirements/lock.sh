#!/usr/bin/env bash
# Compile requirements/*.in to locks with the hash of every file. Needs the CPU wheel of torch where pip finds it.
set -euo pipefail
cd "$(dirname "$0")"
uv=${UV:-uv}
left_out=(torch torchvision torchaudio torchcodec triton)
common=(--quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 --generate-hashes --no-annotate --no-header)
"$uv" pip compile "${common[@]}" ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} "${left_out[@]/#/--no-emit-package=}" cpu.in -o cpu.txt
"$uv" pip compile "${common[@]}" gpu.in -o gpu.txt
sed -i '/^--find-links/d' cpu.txt
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header docs.in -o docs.txt
