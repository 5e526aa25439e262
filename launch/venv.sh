# Sourced by the other scripts of this folder: goes to the root of the clone and activates .venv, making or renewing it first
# when it is missing or was installed from other versions of constraints.txt and pyproject.toml. What is installed beside the
# package itself: E2H_EXTRAS, extras of pyproject.toml ("test" unless it is set).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

e2h_find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "e2h: Python 3.11 or newer is needed, and ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true);" \
        "install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
}

e2h_make_venv() {
    local wanted stamp=.venv/e2h-installed
    wanted="$(cat constraints.txt pyproject.toml | cksum)${E2H_EXTRAS:+ $E2H_EXTRAS}"
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        local python
        python=$(e2h_find_python) || return 1
        echo "e2h: making .venv with $("$python" --version)"
        "$python" -m venv .venv || { rm -rf .venv; echo "e2h: $python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)" >&2; return 1; }
    fi
    echo "e2h: installing the versions of constraints.txt into .venv (about a minute)"
    # The stamp is written last, so an interrupted installation is taken up again.
    rm -f "$stamp"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[${E2H_EXTRAS:-test}]" || return 1
    echo "$wanted" >"$stamp"
}

e2h_make_venv || exit 1
# shellcheck source=/dev/null
. .venv/bin/activate
