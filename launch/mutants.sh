#!/usr/bin/env bash
# Mutation testing of the modules that compute: changes them in one small place at a time, and lists the changes that no test
# notices. Modules, their tests, and the reasons of what may survive: launch/mutants.toml.
#   bash launch/mutants.sh                      all modules
#   bash launch/mutants.sh voting shaping       these
#   bash launch/mutants.sh --help               what else can be said
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
python -c 'import mutmut' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
export JAX_PLATFORMS=cpu
exec python launch/mutants.py "$@"
