#!/bin/sh
# Makes a Python environment with llama.cpp built for this machine, for bench_generate.py and
# make_gguf.py:
#
#     scripts/bench/peers/build_llama_cpp.sh /tmp/peers/llama
#
# Builds the llama-cpp-python source distribution from PyPI with -march=native; about 10 minutes
# on two cores. PYTHON, LLAMA_CPP_PYTHON_VERSION and JOBS change the interpreter, the version and
# the number of compile jobs.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER (of the new environment)" >&2; exit 2; }
environment=$1
version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}

"${PYTHON:-python3}" -m venv "$environment"
pip="$environment/bin/pip --quiet --disable-pip-version-check"
$pip install scikit-build-core ninja cmake numpy gguf

source=$environment/source
rm -rf "$source"
mkdir "$source"
$pip download --no-deps --no-binary llama-cpp-python --no-build-isolation --dest "$source" \
  "llama-cpp-python==$version"
tar -xzf "$source"/llama_cpp_python-*.tar.gz -C "$source" --strip-components=1

# gcc 12 believes that _tile_loadconfig reads 8 bytes of the 64, and at -O3 drops the stores to
# the others; the first AMX instruction then is an illegal one. The barrier says that the whole
# struct is read.
amx=$source/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
sed -i 's/^\( *\)_tile_loadconfig(&\([a-z_]*\));/\1asm volatile("" : : "m"(\2) : "memory");\n&/' "$amx"
grep -q 'asm volatile' "$amx" || { echo "$amx has no _tile_loadconfig to mend" >&2; exit 1; }

CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-2} \
CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF" \
  nice -n 10 $pip install --no-build-isolation "$source"
rm -rf "$source"
"$environment/bin/python" -c 'import llama_cpp; print(llama_cpp.llama_print_system_info().decode())'
