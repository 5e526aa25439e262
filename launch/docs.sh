#!/usr/bin/env bash
# The documentation as a site, in runs/site: it opens from disk and needs no network. Any warning is an error.
#   bash launch/docs.sh              builds it
#   bash launch/docs.sh --serve      … and shows it at http://127.0.0.1:8000, again after every change
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

if ! python -c "import mkdocs, mkdocstrings_handlers.python" 2>/dev/null; then
    python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
fi

export NO_MKDOCS_2_WARNING=1 # of mkdocs-material, about an MkDocs 2 that pyproject.toml does not let in
case "${1:-}" in
--serve) exec mkdocs serve --strict ;;
"")
    mkdocs build --strict --quiet
    echo "e2h: the documentation is in $PWD/runs/site/index.html"
    ;;
*)
    echo "e2h: $1 is no argument of $0; there is --serve" >&2
    exit 2
    ;;
esac
