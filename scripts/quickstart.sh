#!/usr/bin/env bash
# From nothing to a trained model: set up, prepare a corpus, train a small GPT with four processes, show the curve.
# Started again, it reuses what stands and continues where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
started="$(date +%s)"
scripts/setup.sh
exec .venv/bin/python tools/quickstart.py --started "$started" "$@"
