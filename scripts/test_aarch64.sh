#!/usr/bin/env bash
# Compiles the CPU kernels for 64-bit Arm and runs tests/kernels on them under qemu-user, once for
# every processor below, so that each instruction set is really chosen. Arguments go to pytest.
# Needs Python with numpy and pytest (PYTHON), a cross compiler and qemu; as root, missing ones of
# the latter two are installed from Debian. Ends with 0 and one line "skipped: ..." without them.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PACKAGES=(g++-aarch64-linux-gnu qemu-user-static)

first_program() {
    local name
    for name in "$@"; do
        command -v "$name" && return
    done
    return 0
}

find_tools() {
    compiler=$(first_program aarch64-linux-gnu-g++ aarch64-linux-gnu-g++-{12,13,14,11})
    qemu=$(first_program qemu-aarch64-static qemu-aarch64)
    [ -n "$compiler" ] && [ -n "$qemu" ]
}

if ! find_tools && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${PACKAGES[*]}"
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${PACKAGES[@]}"; } \
        >/dev/null 2>&1 || true
fi
if ! find_tools; then
    echo "skipped: a cross compiler and qemu for aarch64 are missing; install them, on Debian by" \
        "apt-get install ${PACKAGES[*]}"
    exit 0
fi

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

echo "Compiling the kernels with $compiler"
flags=(-std=c++17 -O3 -fopenmp -fno-math-errno -ffp-contract=off -Wall -Werror -DGLM_SOURCE_HASH='"aarch64"')
find mindformers_glm/backends/cpu/csrc -name '*.cc' -print0 |
    xargs -0 -P "$(nproc)" -I{} sh -c '"$@" -c {} -o "$0/$(basename {} .cc).o"' \
        "$build" "$compiler" "${flags[@]}"

# The table of tests/kernels/emulated/symbols.h: every function that is exported.
"$("$compiler" -print-prog-name=nm)" --defined-only --extern-only "$build"/*.o |
    awk '
        BEGIN { print "#include \"symbols.h\"" }
        $2 == "T" && $3 ~ /^glm_/ {
            print "extern \"C\" int " $3 "(int, void**, int*, int64_t**, const char**, void*, void*);"
            rows = rows "{\"" $3 "\", " $3 "},\n"
        }
        END { print "const std::vector<std::pair<const char*, AotFunction>> kOperators = {\n" rows "};" }
    ' >"$build/symbols.cc"
"$compiler" "${flags[@]}" -static -I tests/kernels/emulated tests/kernels/emulated/server.cc \
    "$build/symbols.cc" "$build"/*.o -o "$build/kernel_server"

# Threads that wait for one another must not spin: they are emulated on the cores of this machine.
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive

# Runs the tests on the emulated processor `cpu`, which must choose `isa`. Programs of operators
# are left out: MindSpore runs the library of this machine only.
run_tests() {
    local cpu=$1 isa=$2
    shift 2
    GLM_TEST_EMULATOR="$qemu -cpu $cpu $build/kernel_server" GLM_TEST_EMULATED_ISA=$isa \
        "$PYTHON" -m pytest -q -r fE -p no:cacheprovider tests/kernels "$@" \
        --ignore tests/kernels/test_graph.py --ignore tests/kernels/test_program.py
    echo "aarch64 $isa: equal to the reference (qemu -cpu $cpu)"
}

run_tests cortex-a72 neon "$@"
run_tests neoverse-n1 neon_dotprod -k int "$@"  # the rest is that of neon
run_tests max neon_bf16 "$@"
