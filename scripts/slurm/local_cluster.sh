#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, to try job scripts on: scripts/slurm/local_cluster.sh start|stop|status
# Needs slurm-wlm and munge (Debian, Ubuntu: apt-get install slurm-wlm munge). Everything lies in one folder, which `stop`
# removes: LOCAL_CLUSTER, or local_cluster_UID in the folder for temporary files. After `start`, say
#   export SLURM_CONF=THAT_FOLDER/slurm.conf
set -euo pipefail
folder="${LOCAL_CLUSTER:-${TMPDIR:-/tmp}/local_cluster_$(id -u)}"
port="${LOCAL_CLUSTER_PORT:-16817}"
export SLURM_CONF="$folder/slurm.conf" PATH="$PATH:/usr/sbin:/sbin"

fail() {
    echo "local_cluster: error: $1" >&2
    exit 2
}

configure() {
    mkdir -p "$folder"/{state,n1,n2}
    chmod 700 "$folder"
    head -c 128 /dev/urandom > "$folder/munge.key"
    chmod 600 "$folder/munge.key"
    sed "s|@folder@|$folder|g; s|@user@|$(id -un)|g" "$(dirname "${BASH_SOURCE[0]}")/small_cluster.conf" > "$SLURM_CONF"
    cat >> "$SLURM_CONF" << EOF
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 State=UNKNOWN
PartitionName=local Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
EOF
}

wait_for() { # wait_for SECONDS WHAT COMMAND...
    local seconds="$1" what="$2"
    shift 2
    for ((tries = seconds * 5; tries > 0; tries--)); do
        if "$@" > /dev/null 2>&1; then return; fi
        sleep 0.2
    done
    fail "$what after $seconds s; see the logs in $folder"
}

both_idle() { [[ "$(sinfo --noheader --Node --format=%t | grep -c '^idle$')" == 2 ]]; }

start() {
    for program in munged slurmctld slurmd sbatch srun; do
        command -v "$program" > /dev/null || fail "$program is not found; install slurm-wlm and munge"
    done
    if [[ -e "$folder/slurmctld.pid" ]]; then fail "$folder is in use; say $0 stop first"; fi
    configure
    munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" > "$folder/munged.out" 2>&1 ||
        fail "munged does not start; see $folder/munged.out"
    slurmctld -c > "$folder/slurmctld.out" 2>&1 || fail "slurmctld does not start; see $folder/slurmctld.out"
    wait_for 30 "slurmctld does not answer" scontrol ping
    for node in n1 n2; do
        slurmd -N "$node" > "$folder/$node.out" 2>&1 || fail "slurmd of $node does not start; see $folder/$node.out"
    done
    wait_for 30 "the nodes are not idle" both_idle
    echo "local_cluster: n1 and n2 are idle; now say: export SLURM_CONF=$SLURM_CONF"
}

end() { # end PID ...: end these processes, and wait for them
    kill "$@" 2> /dev/null || true
    for ((tries = 50; tries > 0; tries--)); do
        kill -0 "$@" 2> /dev/null || return 0
        sleep 0.2
    done
    kill -KILL "$@" 2> /dev/null || true
}

stop() {
    if [[ ! -e "$SLURM_CONF" ]]; then fail "there is no cluster in $folder"; fi
    scancel --full --user="$(id -un)" > /dev/null 2>&1 || true
    local pids
    mapfile -t pids < <(cat "$folder"/{n1/slurmd,n2/slurmd,slurmctld,munged}.pid 2> /dev/null)
    end "${pids[@]}"
    rm -rf "$folder"
    echo "local_cluster: stopped"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
status) sinfo --Node --long && squeue ;;
*) fail "say start, stop or status" ;;
esac
