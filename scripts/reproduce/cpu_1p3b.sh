#!/usr/bin/env bash
# GPT-Neo-1.3B on CPU nodes. Submits the runs to Slurm; --local trains a few, scaled down, on this machine, and its shape
# with 2 layers on 1, 2 and 4 ranks: the table of docs/reproduce.md.
set -euo pipefail
tables=(cpu_1p3b)
if [[ " $* " == *" --local "* ]]; then tables+=(cpu_small); fi
exec "$(dirname "${BASH_SOURCE[0]}")/table.sh" "${tables[@]}" "$@"
