#!/usr/bin/env bash
# Executes the notebooks, each from nothing, and stores their outputs in them.
#   bash launch/notebooks.sh               all
#   bash launch/notebooks.sh quickstart    this one
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
exec python notebooks/execute.py "$@"
