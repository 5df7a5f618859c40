#!/usr/bin/env bash
# What the scripts beside this one share: table.sh TABLE ... [--local] submits the tables' runs to Slurm, or, with --local,
# trains on this machine what [local] of configs/sweeps/TABLE.toml names, and prints the reports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tables=()
action=submit
for word in "$@"; do
    case "$word" in
    --local) action=local ;;
    -*) echo "reproduce: error: unknown option $word; there is --local" >&2 && exit 2 ;;
    *) tables+=("$word") ;;
    esac
done
scripts/setup.sh
for table in "${tables[@]}"; do
    .venv/bin/python -m tools.sweep "$action" "$table"
    if [[ "$action" == local ]]; then
        folder="runs/${table}_local"
        [[ -d "$folder" ]] || folder="runs/$table" # a table made for one machine
        .venv/bin/python -m tools.report "$table" --runs "$folder" --output "$folder"
    fi
done
if [[ "$action" == submit ]]; then
    echo "reproduce: when the jobs have ended, say .venv/bin/python -m tools.report TABLE for each of ${tables[*]}"
fi
