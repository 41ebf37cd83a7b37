"""TensorZero's embedded gateway, kept open for benchmarks/gateway.py. Runs in TensorZero's own environment."""

import argparse
import sys
from pathlib import Path

import tensorzero

CONFIG = """
[gateway]
observability.enabled = false

[models.mock]
routing = ["mock"]

[models.mock.providers.mock]
type = "vllm"
model_name = "base"
api_base = "{upstream}/v1/"
api_key_location = "none"
"""


def main() -> None:
    """Serve until standard input ends; says where in the folder's file `address`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    config = args.folder / "tensorzero.toml"
    config.write_text(CONFIG.format(upstream=args.upstream), encoding="utf-8")
    gateway = tensorzero._start_http_gateway(
        config_file=str(config), clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    (args.folder / "partial").write_text(gateway.base_url)
    (args.folder / "partial").rename(args.folder / "address")
    sys.stdin.read()
    gateway.close()


if __name__ == "__main__":
    main()
