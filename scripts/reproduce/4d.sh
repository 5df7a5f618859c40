#!/usr/bin/env bash
# Llama-3.1-8B under tensor, context, pipeline and data parallelism. Submits its runs to Slurm; --local trains a few,
# scaled down, on this machine.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/table.sh" 4d_a100_8k 4d_h100_8k 4d_h100_16k "$@"
