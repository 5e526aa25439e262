#!/usr/bin/env bash
# A Cloud TPU slice, from any machine with gcloud: make it, run a command on all of its workers, watch, fetch, delete.
#
#   bash launch/tpu_vm.sh all NAME --topology=v5e:4x4 --share=10.0.0.2:/e2h -- \
#       e2h recipe --config=configs/….py --workdir=/mnt/e2h/RUN
#
# all      everything below in order, and again from where it stopped whenever the slice is preempted, until the run's done.json
#          is here; then the slice is deleted. Interrupted (Ctrl-C, a closed laptop), the run goes on; the same command watches on
# up       requests the slice (a queued resource called NAME) and waits until it is there
# run      installs this tree on all workers and starts the command there, in the background
# status   the slice's state, and each worker's: idle, running, exit CODE
# logs     follows what worker 0 prints (--worker=N: another one's); it is also in RUN.logs/ on the share
# stop     SIGTERM on all workers: the run saves and ends
# fetch    copies the run's folder and its logs into --into=DIR (runs), but for checkpoints and models (--everything: these too)
# down     deletes the slice, after asking (--yes: without)
#
#   --zone=ZONE --project=ID    where; default: gcloud's own (gcloud config set compute/zone …)
#   --topology=v5e:4x4          the slice, named as for `e2h plan` or by Google (v5litepod-16)
#   --capacity=spot             spot (cheapest, may be preempted: the default), reserved or on-demand
#   --share=SERVER:/PATH        an NFS share (Filestore) that all workers see as /mnt/e2h; only a slice of one worker that is not
#                               spot can do without
#   --service-account=EMAIL     whose rights the workers have; default: Compute Engine's own
#   --runtime-version=VERSION   the workers' image; default: the one Google names for this kind of TPU
#   --ref=COMMIT                installs this commit; default: this tree as it is, changes included
#   --retries=3                 how often `all` starts a run again that ended by itself with an error (exit code 1, say)
#   --keep                      `all` leaves the slice there at the end
#   --dry-run                   prints the commands and runs none
# NAME: up to 40 of a-z, 0-9 and -. E2H_POLL_SECONDS (30): how often `all` and `up` look.
#
# Exit codes: 0 finished; 2 a mistake, here or in the run, told in one sentence; 3 the run's plan does not fit; 1 anything else.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for word in "$@"; do
    case $word in --) break ;; --dry-run) dry_run=yes ;; -h | --help) help=yes ;; esac
done
. "$here/commands.sh"
. "$here/slices.sh"
. "$here/tpu_supervise.sh"
if [ -n "${help:-}" ] || [ $# -eq 0 ]; then
    e2h_help
    exit
fi

action=$1
case $action in
    all | up | run | status | logs | stop | fetch | down) ;;
    *) e2h_fail "\"$action\" is no action; it is one of all, up, run, status, logs, stop, fetch, down (--help says what they do)." ;;
esac
name=${2:-}
case $name in "" | -*) e2h_fail "which slice? bash launch/tpu_vm.sh $action NAME …" ;; esac
e2h_check_name "$name"
shift 2

zone="" project="" topology="" capacity=spot share="" service_account="" runtime_version="" ref="" retries=3 into=runs
worker=0 keep="" yes="" everything="" command=()
while [ $# -gt 0 ]; do
    case $1 in
        --zone=*) zone=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --topology=*) topology=${1#*=} ;;
        --capacity=*) capacity=${1#*=} ;;
        --share=*) share=${1#*=} ;;
        --service-account=*) service_account=${1#*=} ;;
        --runtime-version=*) runtime_version=${1#*=} ;;
        --ref=*) ref=${1#*=} ;;
        --retries=*) retries=${1#*=} ;;
        --into=*) into=${1#*=} ;;
        --worker=*) worker=${1#*=} ;;
        --keep) keep=yes ;;
        --yes) yes=yes ;;
        --everything) everything=--everything ;;
        --dry-run) ;;
        --)
            shift
            command=("$@")
            break
            ;;
        *) e2h_fail "there is no flag \"$1\" (--help lists them); the command to run comes after --." ;;
    esac
    shift
done

# --- what was asked for, checked before anything is called

case $capacity in
    spot) capacity_flag=--spot ;;
    reserved) capacity_flag=--reserved ;;
    on-demand) capacity_flag="" ;;
    *) e2h_fail "--capacity=$capacity is not known; it is spot, reserved or on-demand." ;;
esac
[[ $retries =~ ^[0-9]+$ ]] || e2h_fail "--retries=$retries is not a number."
[[ $worker =~ ^[0-9]+$ ]] || e2h_fail "--worker=$worker is not a number."
case $share in "" | ?*:/*) ;; *) e2h_fail "--share=$share is not SERVER:/PATH, such as 10.0.0.2:/e2h." ;; esac

check_slice() {
    create=(gcloud compute tpus queued-resources create)
    [ -n "$topology" ] || e2h_fail "--topology is missing: which slice, such as --topology=v5e:4x4."
    e2h_find_slice "$topology"
    case $family in
        v4) image=tpu-ubuntu2204-base ;;
        v5e) image=v2-alpha-tpuv5-lite ;;
        v5p) image=v2-alpha-tpuv5 ;;
        v6e) image=v2-alpha-tpuv6e ;;
        tpu7x) e2h_fail "tpu7x slices are to be had through Kubernetes only: bash launch/gke/submit.sh --help." ;;
    esac
    if [ -n "$accelerator_type" ]; then
        slice_flags=("--accelerator-type=$accelerator_type")
    else
        slice_flags=("--type=$family" "--topology=$shape")
        if [ "$family" = v5p ]; then create=(gcloud alpha compute tpus queued-resources create); fi # else --type knows v2 to v4 only
    fi
    slice_flags+=("--runtime-version=${runtime_version:-$image}")
    if [ -n "$capacity_flag" ]; then slice_flags+=("$capacity_flag"); fi
    if [ -n "$service_account" ]; then slice_flags+=("--service-account=$service_account"); fi
}

check_command() {
    e2h_find_workdir ${command[@]+"${command[@]}"}
    if [ -n "$share" ]; then
        case $workdir in
            /mnt/e2h/?*) ;;
            *) e2h_fail "--workdir=$workdir is not on the share: it has to be /mnt/e2h/RUN, which all workers see." ;;
        esac
    elif [ -z "$topology" ]; then
        e2h_fail "--share=SERVER:/PATH is missing (or --topology=…, if it is a slice of one worker that needs none)."
    else
        local largest=4 # chips of one worker
        case $family in v5e | v6e) largest=8 ;; esac
        if [ "$chips" -gt "$largest" ] || [ "$capacity" = spot ]; then
            e2h_fail "--share=SERVER:/PATH is missing: the workers of a slice need one folder that all of them see, and what a" \
                "preempted worker had on its own disk is lost (docs/pods.md: the shared disk)."
        fi
    fi
}

case $action in up | all) check_slice ;; run) if [ -n "$topology" ]; then check_slice; fi ;; esac
case $action in run | all) check_command ;; esac

e2h_need gcloud "see https://cloud.google.com/sdk/docs/install"
# gcloud_default FLAG PROPERTY VARIABLE: what gcloud would take, so that every command says it.
gcloud_default() {
    local value=${!3:-}
    if [ -z "$value" ] && [ -z "$dry_run" ]; then value=$(gcloud config get-value "$2" 2>/dev/null || true); fi
    case $value in
        "" | "(unset)") e2h_fail "$1 is missing: give it, or set it once and for all (gcloud config set $2 …)." ;;
    esac
    echo "$value"
}
project=${project:-$(gcloud_default --project core/project CLOUDSDK_CORE_PROJECT)}
zone=${zone:-$(gcloud_default --zone compute/zone CLOUDSDK_COMPUTE_ZONE)}
where=("--project=$project" "--zone=$zone" --quiet)
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# --- one action

case $action in up | all) ;; *) pretended_slice=ACTIVE ;; esac
case $action in
    up) up ;;
    run)
        need_slice
        ask_workers || lost_workers
        if [ "$run" = running ]; then e2h_fail "a command is running on $name: wait for it, or end it (stop $name)."; fi
        start_run
        ;;
    status)
        look
        answers=""
        if [ "$state" = ACTIVE ]; then ask_workers || lost_workers; fi
        if [ -z "$dry_run" ]; then echo "$name: $state${answers:+$'\n'}$answers"; fi
        ;;
    logs) on_workers "$worker" "bash e2h_jax/launch/worker.sh logs" ;;
    stop) on_workers all "bash e2h_jax/launch/worker.sh stop" ;;
    fetch) fetch_or_fail ;;
    down) down ;;
    all) all ;;
esac
