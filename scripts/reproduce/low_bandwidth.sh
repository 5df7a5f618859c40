#!/usr/bin/env bash
# Step times of every scheme on slow links, on an emulated cluster of this machine: writes docs/low_bandwidth.md. An
# hour on two cores, as root; `--part NAME` measures one shape of it. Started again, it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/setup.sh
.venv/bin/python tools/quickstart.py --data-only
exec .venv/bin/python tools/low_bandwidth.py --output docs/low_bandwidth.md "$@"
