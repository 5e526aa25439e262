#!/usr/bin/env bash
# One worker (virtual machine) of a Cloud TPU slice; launch/tpu_vm.sh calls this on all of them.
#   worker.sh setup [SERVER:/PATH]   mounts the share at /mnt/e2h; installs e2h for TPU into .venv, and Python 3.12 if need be
#   worker.sh start COMMAND…         starts the command in the background, unless one is running
#   worker.sh status                 prints "e2h-worker INDEX idle", "… running" or "… exit CODE"
#   worker.sh stop                   SIGTERM, so that the run saves; SIGKILL to what is left after E2H_GRACE_SECONDS (120)
#   worker.sh logs                   the last lines of what the command printed, and all that follow
#   worker.sh results [--everything] an archive of the run's folder on the standard output; checkpoints and models if asked
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/commands.sh"
state=$HOME/e2h_run  # pid, exit, workdir, log of the command; on the worker's own disk
share=/mnt/e2h

# Which worker of the slice this is.
index() {
    local url=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
    if [ ! -s "$state/index" ]; then
        mkdir -p "$state"
        curl --silent --fail --retry 5 -H 'Metadata-Flavor: Google' "$url" >"$state/index.new"
        mv "$state/index.new" "$state/index"
    fi
    cat "$state/index"
}

# state/pid also holds which start of the machine the number belongs to: after another one it is somebody else's.
boot() {
    cat /proc/sys/kernel/random/boot_id
}

is_running() {
    local pid started
    [ -s "$state/pid" ] && read -r pid started <"$state/pid" && [ "$started" = "$(boot)" ] && kill -0 "$pid" 2>/dev/null
}

setup() {
    if [ $# -gt 0 ]; then mount_share "$1"; fi
    # The images of TPU VMs are Ubuntu 22.04, whose Python is 3.10. Not by apt, which the machine itself uses in its first minutes.
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            PYTHON=$candidate
            break
        fi
    done
    if [ -z "${PYTHON:-}" ]; then
        python3 -m pip install --user --quiet --disable-pip-version-check uv
        python3 -m uv python install --quiet 3.12
        PYTHON=$(python3 -m uv python find 3.12)
    fi
    export PYTHON E2H_EXTRAS=tpu
    . "$here/venv.sh"
    echo "worker $(index): $(python --version), e2h_jax in $PWD"
}

mount_share() {
    if mountpoint --quiet "$share"; then return; fi
    if ! command -v mount.nfs >/dev/null; then
        sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
        sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq nfs-common
    fi
    sudo mkdir -p "$share"
    # lookupcache=none: a worker sees at once what another one has renamed into place. nolock: an NFSv3 server would keep the lock
    # of a preempted worker for ever, and the run that goes on would be told that its folder is in use.
    sudo mount -t nfs -o vers=3,hard,nolock,lookupcache=none "$1" "$share"
    sudo chmod a+rwx "$share"
}

start() {
    if is_running; then
        echo "worker $(index): a command is running already"
        return
    fi
    e2h_find_workdir "$@"
    mkdir -p "$state"
    umask 000  # the same login may have another number on another worker
    mkdir -p "$workdir.logs"
    rm -f "$state/exit" "$state/pid"
    echo "$workdir" >"$state/workdir"
    ln -sfn "$workdir.logs/worker-$(index).txt" "$state/log"
    E2H_PROCESS_INDEX=$(index)
    export E2H_PROCESS_INDEX PATH="$here/../.venv/bin:$PATH"
    cd "$here/.."
    setsid nohup bash "$here/worker.sh" attempt "$@" >>"$state/log" 2>&1 </dev/null &
    local waited=0
    while [ ! -s "$state/pid" ]; do
        if [ $((waited += 1)) -gt 200 ]; then e2h_fail "the command does not start; is $workdir.logs writable?"; fi
        sleep 0.05
    done
    echo "worker $E2H_PROCESS_INDEX: started"
}

# Runs the command and leaves its exit code. When the machine shuts down, both get SIGTERM: this one waits for the command.
attempt() {
    local code=0 signalled=""
    echo "--- $(date) $(e2h_quoted "$@")"
    trap 'signalled=1' TERM INT HUP
    "$@" &
    echo "$! $(boot)" >"$state/pid"
    while :; do
        code=0
        wait $! || code=$?
        if [ -z "$signalled" ]; then break; fi
        signalled=""
    done
    echo "--- $(date) exit $code"
    echo "$code" >"$state/exit.new"
    mv "$state/exit.new" "$state/exit"
}

status() {
    if is_running; then
        echo "e2h-worker $(index) running"
    elif [ -s "$state/exit" ]; then
        echo "e2h-worker $(index) exit $(cat "$state/exit")"
    elif [ -s "$state/pid" ]; then
        echo "e2h-worker $(index) exit 137" # the machine was started anew, or all was killed
    else
        echo "e2h-worker $(index) idle"
    fi
}

stop() {
    local left=${E2H_GRACE_SECONDS:-120} pid
    if ! is_running; then return; fi
    read -r pid _ <"$state/pid"
    kill -TERM "$pid"
    while is_running && [ "$left" -gt 0 ]; do
        sleep 1
        left=$((left - 1))
    done
    if is_running; then kill -KILL "$pid"; fi
}

results() {
    local workdir name leave_out
    leave_out=(--exclude=checkpoints --exclude=checkpoints-damaged --exclude=model --exclude=huggingface --exclude=.compiled)
    [ -s "$state/workdir" ] || e2h_fail "nothing was run on this slice yet."
    workdir=$(cat "$state/workdir") name=$(basename "$(cat "$state/workdir")")
    if [ "${1:-}" = --everything ]; then leave_out=(--exclude=.lock); fi
    # 1: a file grew while it was read; it is fetched as it was.
    tar -C "$(dirname "$workdir")" "${leave_out[@]}" -cz "$name" "$name.logs" || [ $? -eq 1 ]
}

action=${1:-}
if [ $# -gt 0 ]; then shift; fi
case $action in
    setup | start | attempt | status | stop | results) "$action" "$@" ;;
    logs) exec tail -n 100 -F "$state/log" ;;
    -h | --help) e2h_help ;;
    *) e2h_fail "which action? setup, start, status, stop, logs or results (--help says what they do)." ;;
esac
