#!/usr/bin/env bash
# Makes a virtual environment, installs the project and asks the shipped checkpoint a question.
# Needs Python 3.10 or 3.11, g++ and a package index.
#   PYTHON=python3.11   the interpreter to use
#   VENV=.venv          where the environment goes
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/make_venv.sh

"$VENV/bin/python" run_mindformer.py --config configs/glm4/predict_glm4.yaml --run_mode predict \
    --use_parallel False --predict_data '请介绍一下北京'
echo "Next: source $VENV/bin/activate; mindformers-glm --help"
