// The kernels for 64-bit Arm processors with BF16 and I8MM (Neoverse N2 and V1 on): the NEON ones
// with other linear layers.
#include "../kernel_table.h"
#if defined(GLM_AARCH64)

// Shared headers come before the pragma: what they define must run on any processor.
#include <omp.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../dtype.h"
#include "../scratch.h"

#pragma GCC target("arch=armv8.2-a+dotprod+bf16")

#define GLM_ISA neon_bf16
#include "vec_neon.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_dotprod.h"
#include "linear.h"
#include "linear_int.h"
#include "linear_int_row.h"

namespace glm {
namespace neon_bf16 {

// Products of bfloat16 pairs, summed in float32 by bfdot: both columns of a line at once.
struct DotBf16 {
  using Weight = bf16_t;
  using Rounding = bf16_t;
  using Activation = bf16_t;
  struct Operand {
    bfloat16x8_t q0, q1, q2, q3;
  };
  static constexpr int kSteps = 1;
  static Operand LoadWeights(const bf16_t* line, int) { return LoadRegister<Operand>(line); }
  static Operand LoadActivation(const bf16_t* x, int) {
    const bfloat16x8_t pairs = vreinterpretq_bf16_u32(vdupq_n_u32(LoadRegister<uint32_t>(x)));
    return {pairs, pairs, pairs, pairs};
  }
  static Vec MultiplyAdd(const Operand& w, const Operand& x, const Vec& sum) {
    return {vbfdotq_f32(sum.q0, w.q0, x.q0), vbfdotq_f32(sum.q1, w.q1, x.q1),
            vbfdotq_f32(sum.q2, w.q2, x.q2), vbfdotq_f32(sum.q3, w.q3, x.q3)};
  }
};

void Linear(const LinearArgs& args) {
  if (args.compute_dtype == DType::kBF16) {
    LinearWith<DotBf16>(args);
  } else {
    kNeonTable.linear(args);
  }
}

}  // namespace neon_bf16

const KernelTable kNeonBf16Table = {
    "neon_bf16",
    neon_bf16::Linear,
    neon_bf16::LinearIntOrRow<neon_bf16::LinearInt>,
    kNeonTable.rms_norm,
    kNeonDotprodTable.attention,
    kNeonTable.convert,
    kNeonTable.pack_rows,
    kNeonTable.quantize_row,
};

}  // namespace glm

#endif  // GLM_AARCH64
