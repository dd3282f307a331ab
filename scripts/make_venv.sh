# Sourced by quickstart.sh and run_tests.sh, in the repository's root: makes the virtual environment
# $VENV and installs the project into it in place. EXTRAS, e.g. "[dev]", adds optional packages.
VENV=${VENV:-.venv}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.10 python3}; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.10 or 3.11 is needed and ${PYTHON:-python3.11, python3.10 and python3} is" \
        "not one; install it or name it: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
}

if ! command -v "${CXX:-g++}" >/dev/null; then
    echo "error: ${CXX:-g++} is needed to compile the CPU kernels; install it" \
        "(Debian: apt-get install g++)" >&2
    exit 1
fi
if [ ! -e "$VENV" ]; then
    interpreter=$(find_python)
    echo "Making a virtual environment in $VENV with $interpreter"
    "$interpreter" -m venv "$VENV"
elif ! is_supported "$VENV/bin/python"; then
    echo "error: $VENV is there but holds no Python 3.10 or 3.11: remove it, or choose another" \
        "place with VENV=DIR bash $0" >&2
    exit 1
else
    echo "Using the virtual environment in $VENV"
fi
echo "Installing mindformers_glm${EXTRAS:-} into $VENV: downloads what it needs (once; 3.3 GB" \
    "installed) and compiles the CPU kernels, unless an install before did: minutes"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${EXTRAS:-}"
