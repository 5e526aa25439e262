#!/usr/bin/env bash
# All checks, on this machine: style, the rooms' walls, tests. Makes its own virtual environment.
#   bash launch/test.sh                      everything
#   bash launch/test.sh tests/test_stage.py  the same checks, and these tests only
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# TPU's compiler, for the tests that compile for one: 200 MB that nothing else here needs, made for Linux on x86-64 only. By JAX's
# extra, as on a pod: it is the version that JAX names, and another one that is there is replaced.
if [ "$(uname -sm)" = "Linux x86_64" ]; then
    python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'jax[tpu]'
fi

export JAX_PLATFORMS=cpu
ruff check .
lint-imports --no-cache --no-logo
# One worker for each core, four at most: a worker takes up to 2 GB. Whole files go to a worker, for the fixtures they share, in
# the order of tests/conftest.py.
exec python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
