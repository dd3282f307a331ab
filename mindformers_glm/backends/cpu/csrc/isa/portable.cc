// The kernels for any processor.
#define GLM_ISA portable
#include "vec_portable.h"
// (the order matters: the files below are written in terms of the vector above)
#include "dot_int_portable.h"
#include "attention.h"
#include "convert.h"
#include "linear.h"
#include "linear_int.h"
#include "linear_int_row.h"
#include "norm.h"
#include "quantize.h"

namespace glm {
namespace portable {

void Linear(const LinearArgs& args) {
  if (args.compute_dtype == DType::kF32) {
    LinearF32(args);
  } else if (args.compute_dtype == DType::kBF16) {
    LinearWith<DotF32<bf16_t, bf16_t>>(args);
  } else {
    LinearWith<DotF32<f16_t, f16_t>>(args);
  }
}

}  // namespace portable

const KernelTable kPortableTable = {
    "portable",
    portable::Linear,
    portable::LinearIntOrRow<portable::LinearInt>,
    portable::RmsNorm,
    portable::Attention,
    portable::Convert,
    portable::PackRows,
    portable::QuantizeRow,
};

}  // namespace glm
