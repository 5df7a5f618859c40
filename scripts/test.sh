#!/usr/bin/env bash
# Sets up, then checks style, the codec's speed (half of what it has to reach) and runs every test; further arguments
# go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
timeout -k 5 120 .venv/bin/python tools/bench_codec.py --gate
exec .venv/bin/python -m pytest -rs "$@"
