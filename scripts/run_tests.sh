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
# Two processes, each with whole files: modules share their models. `-n 0` is one.
"$VENV/bin/python" -m pytest -n 2 --dist loadfile "$@"
