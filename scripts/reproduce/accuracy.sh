#!/usr/bin/env bash
# Validation losses after 80,000 iterations on the Pile, which has to lie in data/pile as configs/sweeps/accuracy.toml says.
# Submits the runs to Slurm; --local trains a small GPT on the quickstart's corpus instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ "${1:-}" == --local ]]; then exec ./accuracy_small.sh "${@:2}"; fi
exec ./table.sh accuracy "$@"
