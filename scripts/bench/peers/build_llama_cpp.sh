#!/bin/sh
# Makes a Python environment with llama.cpp built for this machine: the library for
# bench_generate.py and make_gguf.py, and bin/llama-server for bench_serving.py:
#
#     scripts/bench/peers/build_llama_cpp.sh /tmp/peers/llama
#
# Builds the source that llama-cpp-python's distribution on PyPI carries, once, with -march=native;
# about 20 minutes on two cores. A build that was stopped goes on where it was. PYTHON,
# LLAMA_CPP_PYTHON_VERSION and JOBS change the interpreter, the version and the number of compile
# jobs.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER (of the new environment)" >&2; exit 2; }
environment=$1
version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}

"${PYTHON:-python3}" -m venv "$environment"
environment=$(cd "$environment" && pwd)
pip="$environment/bin/pip --quiet --disable-pip-version-check"
$pip install scikit-build-core ninja cmake numpy gguf

source=$environment/source-$version
vendor=$source/vendor/llama.cpp
if [ ! -d "$vendor" ]; then
  mkdir -p "$source"
  PATH=$environment/bin:$PATH $pip download --no-deps --no-binary llama-cpp-python \
    --no-build-isolation --dest "$source" "llama-cpp-python==$version"
  tar -xzf "$source"/llama_cpp_python-*.tar.gz -C "$source" --strip-components=1
fi

# gcc 12 believes that _tile_loadconfig reads 8 bytes of the 64, and at -O3 drops the stores to
# the others; the first AMX instruction then is an illegal one. The barrier says that the whole
# struct is read.
amx=$vendor/ggml/src/ggml-cpu/amx/mmq.cpp
grep -q 'asm volatile' "$amx" || sed -i \
  's/^\( *\)_tile_loadconfig(&\([a-z_]*\));/\1asm volatile("" : : "m"(\2) : "memory");\n&/' "$amx"
grep -q 'asm volatile' "$amx" || { echo "$amx has no _tile_loadconfig to mend" >&2; exit 1; }

# The libraries and the server look for each other in their own folder. No web page: its files
# would be downloaded.
PATH=$environment/bin:$PATH
cmake -S "$vendor" -B "$source/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
  -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
  -DLLAMA_USE_PREBUILT_UI=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN'
# Pictures, sound, chat templates and the parsers of options are not what is timed: they take a
# third of the build at -O3.
sed -i -e '/^build tools\/mtmd\//,/^$/ s/ -O3 / -O0 /' \
  -e '/^build common\/.*\(parsers\|jinja\|chat\|arg\|download\)/,/^$/ s/ -O3 / -O1 /' \
  "$source/build/build.ninja"
for target in llama llama-server; do
  nice -n 10 cmake --build "$source/build" --target $target --parallel "${JOBS:-2}"
done

CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" $pip install --no-build-isolation "$source"
package=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$package/llama_cpp/lib"
cp -P "$source"/build/bin/*.so* "$source/build/bin/llama-server" "$package/llama_cpp/lib/"
ln -sf "$package/llama_cpp/lib/llama-server" "$environment/bin/llama-server"
"$environment/bin/python" -c 'import llama_cpp; print(llama_cpp.llama_print_system_info().decode())'
"$environment/bin/llama-server" --version
rm -rf "$source"
