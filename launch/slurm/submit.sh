#!/usr/bin/env bash
# A run on GPUs of a Slurm cluster, from a login node: launch/slurm/job.sbatch, handed to sbatch. One process a
# machine, with all of its GPUs. At the end of its time and when it is preempted the run saves, the job is queued again, and goes
# on, until the run's done.json is there.
#
#   bash launch/slurm/submit.sh NAME --nodes=2 --gpus=8 --time=24:00:00 -- \
#       e2h recipe --config=configs/….py --workdir=/shared/RUN
#
#   --nodes=1        machines
#   --gpus=8         GPUs of each
#   --cpus=N         CPU cores of each; default: 8 for every GPU
#   --time=LIMIT     of one turn in the queue; default: the cluster's
#   --sbatch=FLAG    any other flag of sbatch, as often as needed: --sbatch=--partition=a100 --sbatch=--account=me
#   --retries=3      how often a run that ended by itself with an error is started again
#   --dry-run        prints the commands and runs none
# This clone and the run's folder have to be on a disk that all machines see. Exit codes: 0 submitted, or queued already; 2 a
# mistake; 1 sbatch failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd) root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
for word in "$@"; do
    case $word in --) break ;; --dry-run) dry_run=yes ;; -h | --help) help=yes ;; esac
done
. "$here/../commands.sh"
if [ -n "${help:-}" ] || [ $# -eq 0 ]; then
    e2h_help
    exit
fi

name=$1
e2h_check_name "$name"
shift
nodes=1 gpus=8 cpus="" retries=3 flags=() command=()
while [ $# -gt 0 ]; do
    case $1 in
        --nodes=*) nodes=${1#*=} ;;
        --gpus=*) gpus=${1#*=} ;;
        --cpus=*) cpus=${1#*=} ;;
        --retries=*) retries=${1#*=} ;;
        --time=*) flags+=("$1") ;;
        --sbatch=-*) flags+=("${1#*=}") ;;
        --dry-run) ;;
        --)
            shift
            command=("$@")
            break
            ;;
        *) e2h_fail "there is no flag \"$1\" (--help lists them); sbatch's own are written --sbatch=--FLAG=VALUE." ;;
    esac
    shift
done
[[ $nodes =~ ^[1-9][0-9]*$ ]] || e2h_fail "--nodes=$nodes is not a number of machines."
[[ $gpus =~ ^[1-9][0-9]*$ ]] || e2h_fail "--gpus=$gpus is not a number of GPUs."
cpus=${cpus:-$((8 * gpus))}
[[ $cpus =~ ^[1-9][0-9]*$ ]] || e2h_fail "--cpus=$cpus is not a number of CPU cores."
[[ $retries =~ ^[0-9]+$ ]] || e2h_fail "--retries=$retries is not a number."
e2h_find_workdir ${command[@]+"${command[@]}"}
e2h_need sbatch "log in to a machine of the Slurm cluster"

queued=$(e2h_ask "" squeue --me --noheader --format=%i "--name=$name")
if [ -n "$queued" ]; then
    echo "$name is queued or at work already (job $(echo "$queued" | head -n 1)); nothing was submitted"
    exit
fi
# Installed here, where there is a network; the machines see the same clone.
e2h_call env E2H_EXTRAS=gpu bash "$root/launch/venv.sh"
e2h_call mkdir -p "$workdir.logs"
e2h_call sbatch "--job-name=$name" "--nodes=$nodes" --ntasks-per-node=1 "--cpus-per-task=$cpus" "--gpus-per-node=$gpus" \
    "--chdir=$root" "--output=$workdir.logs/slurm.txt" ${flags[@]+"${flags[@]}"} "$here/job.sbatch" "$retries" "${command[@]}" || exit 1
e2h_note "watch: squeue --me; tail -F $workdir.logs/process-0.txt; end it: scancel --name=$name"
