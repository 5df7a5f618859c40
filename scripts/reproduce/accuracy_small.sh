#!/usr/bin/env bash
# Accuracy of every scheme on a small GPT, three seeds, against what is demanded: writes docs/accuracy.md. About half an
# hour on two quiet cores. Started again, it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/setup.sh
.venv/bin/python tools/quickstart.py --data-only
exec .venv/bin/python tools/accuracy.py configs/experiments/accuracy_small.toml --output docs/accuracy.md "$@"
