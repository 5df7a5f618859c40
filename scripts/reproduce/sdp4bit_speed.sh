#!/usr/bin/env bash
# SDP4Bit's speed: the published table, the scaling runs and the breakdown. Submits its runs to Slurm; --local trains a few,
# scaled down, on this machine.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/table.sh" sdp4bit_speed sdp4bit_scaling sdp4bit_breakdown "$@"
