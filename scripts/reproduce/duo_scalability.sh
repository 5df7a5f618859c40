#!/usr/bin/env bash
# SDP4Bit and DUO4Bit on 32 A100. Submits its runs to Slurm; --local trains a few,
# scaled down, on this machine.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/table.sh" duo_scalability "$@"
