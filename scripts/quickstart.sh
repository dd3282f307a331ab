#!/usr/bin/env bash
# Makes a virtual environment, installs the project and asks the shipped checkpoint a question.
# Needs Python 3.10 or 3.11, g++ and a package index.
#   PYTHON=python3.11   the interpreter to use
#   VENV=.venv          where the environment goes
set -euo pipefail
cd "$(dirname "$0")/.."
echo "Three steps: make a virtual environment, install the project into it, ask a question"
source scripts/make_venv.sh

echo "Asking glm4-mini, a small checkpoint that comes with the project: 请介绍一下北京"
"$VENV/bin/python" run_mindformer.py --config configs/glm4/predict_glm4.yaml --run_mode predict \
    --use_parallel False --predict_data '请介绍一下北京'
echo "The answer is in text_generation_result.txt too."
echo "Next: source $VENV/bin/activate; mindformers-glm --help"
