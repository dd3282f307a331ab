#!/bin/sh
# Makes a Python environment for ik_llama_cpp_worker.py, with ik_llama.cpp built for this machine
# from a source folder that is here already (a clone, at the commit that is to be measured):
#
#     scripts/bench/peers/build_ik_llama.sh /tmp/peers/ik_llama /tmp/src/ik_llama.cpp
#
# The source is not changed; about 20 minutes on two cores. PYTHON and JOBS change the interpreter
# and the number of compile jobs; IK_LLAMA_VERSION names the commit where SOURCE is no clone. Where
# a clone has no copy of large files, the library does not need them: unpack what there is, with
#     git archive HEAD -- . ':(exclude)models' ':(exclude)examples/server' | tar -x -C SOURCE
# Models are the GGUF files of make_gguf.py, which llama.cpp's
# environment writes.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 FOLDER (of the new environment) SOURCE" >&2; exit 2; }
environment=$1
source=$2
[ -f "$source/include/llama.h" ] && [ -d "$source/ggml/src/iqk" ] || {
  echo "$source is no source folder of ik_llama.cpp: it lacks include/llama.h or ggml/src/iqk" >&2
  exit 2
}
here=$(cd "$(dirname "$0")" && pwd)

"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" --quiet --disable-pip-version-check install cmake ninja numpy
PATH=$environment/bin:$PATH
cmake -S "$source" -B "$environment/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DGGML_OPENMP=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(cd "$environment" && pwd)/lib"
nice -n 10 cmake --build "$environment/build" --target llama --parallel "${JOBS:-2}"
library=$(cd "$environment/lib" && pwd)
"${CXX:-g++}" -std=c++17 -O2 -shared -fPIC -I "$source/include" -I "$source/ggml/include" \
  "$here/ik_llama_shim.cpp" -L "$library" -lllama -lggml -Wl,-rpath,"$library" \
  -o "$library/libik_llama_shim.so"
commit=${IK_LLAMA_VERSION:-$(git -C "$source" describe --always --dirty 2>/dev/null || true)}
echo "${commit:-unknown commit}" > "$library/version"
echo "ik_llama.cpp $(cat "$library/version") is in $environment"
