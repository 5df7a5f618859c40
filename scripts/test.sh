#!/usr/bin/env bash
# Sets up, then checks style, the codec's speed (half of what it has to reach), makes a short version of the experiment on
# slow links where namespaces are permitted, and runs every test; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
timeout -k 5 120 .venv/bin/python tools/bench_codec.py --gate
for program in munged slurmctld slurmd sbatch; do
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null; then
        echo "test.sh: $program is not found, so test_slurm.py and test_emulated_slurm.py are skipped: apt-get install" \
            "slurm-wlm munge"
        break
    fi
done
if .venv/bin/python -c "from tools.emulator.namespaces import check_privilege; check_privilege()" 2> /dev/null; then
    .venv/bin/python tools/quickstart.py --data-only
    rm -rf runs/low_bandwidth_quick
    timeout -k 5 180 .venv/bin/python tools/low_bandwidth.py --quick
else
    echo "SKIPPED tools/low_bandwidth.py --quick: network namespaces need root and the capability NET_ADMIN"
fi
exec .venv/bin/python -m pytest -rs "$@"
