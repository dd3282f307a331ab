// The kernels for processors with AVX-512 and its BF16 dot products (Intel Cooper Lake and Sapphire
// Rapids on, AMD Zen 4 on).
#include "../kernel_table.h"
#if defined(GLM_X86)

// Shared headers come before the pragma: what they define must run on any processor.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

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

#define GLM_ISA avx512
#include "vec_avx512.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_avx512.h"
#include "attention.h"
#include "convert.h"
#include "dot_bf16.h"
#include "linear.h"
#include "linear_int.h"
#include "linear_int_many.h"
#include "linear_int_row.h"
#include "norm.h"
#include "quantize.h"

namespace glm {
namespace avx512 {

void Linear(const LinearArgs& args) {
  if (args.compute_dtype == DType::kF32) {
    LinearF32(args);
  } else if (args.compute_dtype == DType::kBF16) {
    LinearWith<DotBf16>(args);
  } else {
    LinearWith<DotF32<f16_t, f16_t>>(args);
  }
}

}  // namespace avx512

const KernelTable kAvx512Table = {
    "avx512",
    avx512::Linear,
    avx512::LinearIntOrRow<avx512::LinearIntAnyTokens>,
    avx512::RmsNorm,
    avx512::Attention,
    avx512::Convert,
    avx512::PackRows,
    avx512::QuantizeRow,
};

}  // namespace glm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // GLM_X86
