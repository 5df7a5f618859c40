#!/usr/bin/env bash
# GPT on uneven networks. Submits its runs to Slurm; --local trains a few,
# scaled down, on this machine.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/table.sh" heterogeneous "$@"
