#!/usr/bin/env bash
# Installs what the tests need into the virtual environment and runs linters, types and tests.
# Arguments go to pytest, e.g. scripts/run_tests.sh -m "not slow" tests/unit
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS="[dev,serve,chat,web]"
source scripts/make_venv.sh

"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check .
"$VENV/bin/python" -m mypy
"$VENV/bin/python" -m pytest "$@"
