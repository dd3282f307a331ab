// The kernels for processors with AMX tiles (Intel Sapphire Rapids on): the AVX-512 ones, with
// bfloat16 products on tiles. Twice, once with emulated tiles for machines that have none.
#include "../kernel_table.h"
#if defined(GLM_X86)

// Shared headers come before the pragma: what they define must run on any processor.
#include <omp.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../dtype.h"
#include "../scratch.h"

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((                                                                         \
        target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx512vnni")
#endif

#define GLM_ISA amx
#include "vec_avx512.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_avx512.h"
#include "linear_amx.h"
#include "linear_int_amx.h"
#include "linear_int_many_amx.h"
#include "linear_int_row_amx.h"
#include "tiles_amx.h"
#include "tiles_emulated.h"

namespace glm {
namespace amx {

template <class Tiles>
void Linear(const LinearArgs& args) {
  if (args.compute_dtype == DType::kBF16) {
    LinearAmx<Tiles>(args);
  } else {
    kAvx512Table.linear(args);
  }
}

}  // namespace amx

const KernelTable kAmxTable = {
    "amx",
    amx::Linear<amx::HardwareTiles>,
    amx::LinearIntOrRowAmx<amx::HardwareTiles>,
    kAvx512Table.rms_norm,
    kAvx512Table.attention,
    kAvx512Table.convert,
    kAvx512Table.pack_rows,
    kAvx512Table.quantize_row,
};

const KernelTable kAmxEmulatedTable = {
    "amx_emulated",
    amx::Linear<amx::EmulatedTiles>,
    amx::LinearIntOrRowAmx<amx::EmulatedTiles>,
    kAvx512Table.rms_norm,
    kAvx512Table.attention,
    kAvx512Table.convert,
    kAvx512Table.pack_rows,
    kAvx512Table.quantize_row,
};

}  // namespace glm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // GLM_X86
