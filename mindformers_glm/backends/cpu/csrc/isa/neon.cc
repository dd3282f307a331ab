// The kernels for every 64-bit Arm processor: NEON with conversion of float16 is part of ARMv8.
#include "../kernel_table.h"
#if defined(GLM_AARCH64)

#define GLM_ISA neon
#include "vec_neon.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_neon.h"
#include "attention.h"
#include "convert.h"
#include "linear.h"
#include "linear_int.h"
#include "linear_int_row.h"
#include "norm.h"
#include "quantize.h"

namespace glm {
namespace neon {

void Linear(const LinearArgs& args) {
  if (args.compute_dtype == DType::kF32) {
    LinearF32(args);
  } else if (args.compute_dtype == DType::kBF16) {
    LinearWith<DotF32<bf16_t, bf16_t>>(args);
  } else {
    LinearWith<DotF32<f16_t, f16_t>>(args);
  }
}

}  // namespace neon

const KernelTable kNeonTable = {
    "neon",
    neon::Linear,
    neon::LinearIntOrRow<neon::LinearInt>,
    neon::RmsNorm,
    neon::Attention,
    neon::Convert,
    neon::PackRows,
    neon::QuantizeRow,
};

}  // namespace glm

#endif  // GLM_AARCH64
