// The kernels for processors with AVX2, FMA and F16C (Intel Haswell on, AMD Zen on), and for those
// with AVX-512 but without its BF16 dot products.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define GLM_ISA avx2
#include "vec_avx2.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_avx2.h"
#include "attention.h"
#include "convert.h"
#include "linear.h"
#include "linear_int.h"
#include "linear_int_row.h"
#include "norm.h"
#include "quantize.h"

namespace glm {
namespace avx2 {

void Linear(const LinearArgs& args) {
  if (args.compute_dtype == DType::kF32) {
    LinearF32(args);
  } else if (args.compute_dtype == DType::kBF16) {
    LinearWith<DotF32<bf16_t, bf16_t>>(args);
  } else {
    LinearWith<DotF32<f16_t, f16_t>>(args);
  }
}

}  // namespace avx2

const KernelTable kAvx2Table = {
    "avx2",
    avx2::Linear,
    avx2::LinearIntOrRow<avx2::LinearInt>,
    avx2::RmsNorm,
    avx2::Attention,
    avx2::Convert,
    avx2::PackRows,
    avx2::QuantizeRow,
};

}  // namespace glm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // GLM_X86
