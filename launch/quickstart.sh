#!/usr/bin/env bash
# The whole method on this machine, from nothing: installs, trains a generator and three evaluators on easy problems, samples hard
# ones, re-ranks, and shows the table. Interrupted, it resumes where it stopped when run again.
#   bash launch/quickstart.sh
#   bash launch/quickstart.sh --config.FIELD=VALUE …     a field of configs/quickstart.py
#   bash launch/quickstart.sh --workdir=DIR              somewhere else than runs/quickstart
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

workdir=runs/quickstart
for argument in "$@"; do
    case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done

e2h recipe --config=configs/quickstart.py --workdir="$workdir" "$@"

echo
echo "Everything is in $workdir (of $PWD):"
for name in report.html table.md curves.png results.json; do
    if [ -e "$workdir/$name" ]; then echo "  $workdir/$name"; fi
done
echo "  tensorboard --logdir $workdir       the training curves (pip install tensorboard)"
