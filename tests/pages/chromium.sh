#!/usr/bin/env bash
# Install Debian's Chromium where there is none and this user may. Where not, the tests say so.
set -euo pipefail
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
timeout 120 apt-get update -qq >/dev/null && timeout 600 apt-get install -y -qq --no-install-recommends chromium fonts-noto-color-emoji >/dev/null \
  || echo 'plaudit: chromium could not be installed' >&2
