#!/usr/bin/env bash
# A run on a TPU slice of a GKE cluster: launch/gke/jobset.yaml, filled in, handed to kubectl. Preempted or failed, it is started
# again by the cluster and goes on where it stopped; a user's mistake (exit code 2, 3) ends it.
#
#   bash launch/gke/submit.sh NAME --topology=v5e:4x4 --image=REGION-docker.pkg.dev/PROJECT/e2h/e2h:1 --share=10.0.0.2:/e2h -- \
#       e2h recipe --config=configs/….py --workdir=/mnt/e2h/RUN
#
#   --topology=v5e:4x4     the slice, named as for `e2h plan` or by Google (v5litepod-16); tpu7x too
#   --image=IMAGE          built from launch/gke/Dockerfile (docs/pods.md)
#   --share=SERVER:/PATH   the NFS share (Filestore) that all pods see as /mnt/e2h; becomes the cluster's volume "e2h"
#   --capacity=spot        spot (the default), on-demand, or the name of a reservation: --capacity=reservation:NAME
#   --restarts=50          how often the run may be started again, preemptions included
#   --grace=120            seconds between SIGTERM and SIGKILL
#   --service-account=NAME the Kubernetes service account of the pods (default)
#   --dry-run              prints the command, manifest and all, and runs nothing
# The cluster is kubectl's current one. Exit codes: 0 submitted, or at work already; 2 a mistake; 1 kubectl failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for word in "$@"; do
    case $word in --) break ;; --dry-run) dry_run=yes ;; -h | --help) help=yes ;; esac
done
. "$here/../commands.sh"
. "$here/../slices.sh"
if [ -n "${help:-}" ] || [ $# -eq 0 ]; then
    e2h_help
    exit
fi

# The words as strings of YAML (and JSON).
json() {
    local word
    for word in "$@"; do printf '"%s"\n' "$(printf %s "$word" | sed 's/[\\"]/\\&/g')"; done
}

name=$1
e2h_check_name "$name"
shift
topology="" image="" share="" capacity=spot restarts=50 grace=120 service_account=default command=()
while [ $# -gt 0 ]; do
    case $1 in
        --topology=*) topology=${1#*=} ;;
        --image=*) image=${1#*=} ;;
        --share=*) share=${1#*=} ;;
        --capacity=*) capacity=${1#*=} ;;
        --restarts=*) restarts=${1#*=} ;;
        --grace=*) grace=${1#*=} ;;
        --service-account=*) service_account=${1#*=} ;;
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

[ -n "$topology" ] || e2h_fail "--topology is missing: which slice, such as --topology=v5e:4x4."
[ -n "$image" ] || e2h_fail "--image is missing: the one built from launch/gke/Dockerfile (docs/pods.md says how)."
case $share in ?*:/*) ;; *) e2h_fail "--share=SERVER:/PATH is missing: the NFS share that all pods see, such as 10.0.0.2:/e2h." ;; esac
[[ $restarts =~ ^[0-9]+$ ]] || e2h_fail "--restarts=$restarts is not a number."
[[ $grace =~ ^[0-9]+$ ]] || e2h_fail "--grace=$grace is not a number of seconds."
case $capacity in
    spot) selector='cloud.google.com/gke-spot: "true"' ;;
    on-demand) selector="" ;;
    reservation:?*) selector="cloud.google.com/reservation-name: $(json "${capacity#*:}")" ;;
    *) e2h_fail "--capacity=$capacity is not known; it is spot, on-demand or reservation:NAME." ;;
esac
e2h_find_slice "$topology"
case $family in
    v4) accelerator=tpu-v4-podslice ;;
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    tpu7x) accelerator=tpu7x ;;
esac
chips_per_pod=$((chips == 1 ? 1 : 4)) # the machine types that end in -1t and -4t
e2h_find_workdir ${command[@]+"${command[@]}"}
case $workdir in
    /mnt/e2h/?*) ;;
    *) e2h_fail "--workdir=$workdir is not on the share: it has to be /mnt/e2h/RUN, which all pods see." ;;
esac

# Puts the variables of the environment in the place of their @NAMES@, one a line; a line of which nothing is left goes.
render() {
    NAME=$name SERVER=$(json "${share%%:*}") PATH_=$(json "${share#*:}") RESTARTS=$restarts PODS=$((chips / chips_per_pod)) \
        GRACE=$grace SERVICE_ACCOUNT=$(json "$service_account") ACCELERATOR=$accelerator TOPOLOGY=$(json "$shape") \
        CAPACITY=$selector IMAGE=$(json "$image") COMMAND="[$(json "${command[@]}" | paste -sd, -)]" CHIPS_PER_POD=$chips_per_pod \
        awk '{
            line = ""
            while (match($0, /@[A-Z_]+@/)) {
                key = substr($0, RSTART + 1, RLENGTH - 2)
                line = line substr($0, 1, RSTART - 1) ENVIRON[key == "PATH" ? "PATH_" : key]
                $0 = substr($0, RSTART + RLENGTH)
            }
            line = line $0
            if (line ~ /[^ ]/) print line
        }' "$here/jobset.yaml"
}

if [ -n "$dry_run" ]; then
    echo "kubectl apply -f - <<'END'"
    render
    echo END
    exit
fi
e2h_need kubectl "see https://cloud.google.com/kubernetes-engine/docs/how-to/cluster-access-for-kubectl"
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
if ! ended=$(kubectl get jobset "$name" --ignore-not-found '--output=jsonpath={.metadata.name}:{.status.terminalState}' 2>"$errors"); then
    case $(cat "$errors") in
        *"have a resource type"*) e2h_fail "this cluster does not know JobSet: install it (docs/pods.md says how), then submit again." ;;
        *) e2h_fail "kubectl does not reach the cluster: $(tail -n 1 "$errors")" ;;
    esac
fi
case $ended in
    "" | :) ;;
    *:) echo "$name is at work already; nothing was submitted" && exit ;;
    *) e2h_fail "$name has ended (${ended#*:}): kubectl delete jobset $name, and submit again; the run goes on where it stopped." ;;
esac
render | kubectl apply -f - || exit 1
echo "$name is submitted. Watch: kubectl get jobset,pods -l jobset.sigs.k8s.io/jobset-name=$name"
echo "What worker 0 prints:  kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
echo "End it (the run's files stay on the share): kubectl delete jobset $name"
