#!/usr/bin/env bash
# All checks, on this machine: style, the rooms' walls, tests. Makes its own virtual environment.
#   bash launch/test.sh                      everything
#   bash launch/test.sh tests/test_stage.py  the same checks, and these tests only
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

export JAX_PLATFORMS=cpu
ruff check .
lint-imports --no-cache --no-logo
# One worker for each core, four at most: a worker takes up to 2 GB. Whole files go to a worker, for the fixtures they share.
exec python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
