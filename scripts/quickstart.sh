#!/usr/bin/env bash
# From nothing to two trained models: set up, prepare a corpus, train a small GPT with four processes, without compression
# and with SDP4Bit, show both curves. Started again, it reuses what stands and continues where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
started="$(date +%s)"
scripts/setup.sh
exec .venv/bin/python tools/quickstart.py --started "$started" "$@"
