# Sourced by scripts/quickstart and scripts/test: the environment of this checkout.
# Usage: environment EXTRAS   makes .venv or reuses it, and installs the package when pyproject.toml is newer.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "$0: $*" >&2
    exit 1
}

python_of_the_system() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer with the venv module; set PYTHON=/path/to/python"
}

environment() {
    local extras=$1 stamp=".venv/.installed-${1//,/-}"
    if [ ! -x .venv/bin/python ]; then
        echo "making .venv" >&2
        local python
        python=$(python_of_the_system)
        "$python" -m venv .venv || fail "could not make .venv with $python"
    fi
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        echo "installing vlalign[$extras] into .venv (several GB on a first run: PyTorch)" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]" ||
            fail "installation failed; the lines above say why. Run it again once that is mended."
        touch "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
