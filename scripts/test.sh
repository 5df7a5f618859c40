#!/usr/bin/env bash
# Sets up, then checks style, the codec's speed (half of what it has to reach) and runs every test; further arguments
# go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
timeout -k 5 120 .venv/bin/python tools/bench_codec.py --gate
for program in munged slurmctld slurmd sbatch; do
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null; then
        echo "test.sh: $program is not found, so tests/end_to_end/test_slurm.py is skipped: apt-get install slurm-wlm munge"
        break
    fi
done
exec .venv/bin/python -m pytest -rs "$@"
