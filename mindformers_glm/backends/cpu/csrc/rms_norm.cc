// RMSNorm, alone or with a residual added to its result (the second norm of GLM's sandwich).
#include <stdexcept>

#include "aot.h"
#include "kernel_table.h"

namespace glm {
namespace {

// x f32[M, H], weight f32[H], eps f32[1] (, residual f32[M, H]), num_rows i32[1] -> f32[M, H]
void RmsNorm(const AotCall& call, bool has_residual) {
  call.ExpectParams(has_residual ? 6 : 5, has_residual ? 6 : 5);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor weight = call.Get(1, "weight", 1, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  ExpectSize(weight, 0, x.shape[1]);
  ExpectSize(y, 0, x.shape[0]);
  ExpectSize(y, 1, x.shape[1]);

  RmsNormArgs args{};
  args.x = x.As<float>();
  args.weight = weight.As<float>();
  args.eps = call.GetFloat(2, "eps");
  if (has_residual) {
    const Tensor residual = call.Get(3, "residual", 2, {DType::kF32});
    ExpectSize(residual, 0, x.shape[0]);
    ExpectSize(residual, 1, x.shape[1]);
    args.residual = residual.As<float>();
  }
  args.y = y.As<float>();
  args.num_rows = call.GetCount(has_residual ? 4 : 3, "num_rows", x.shape[0]);
  args.width = x.shape[1];
  Kernels().rms_norm(args);
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_rms_norm, glm::RmsNorm(call, false))
GLM_OPERATOR(glm_rms_norm_add, glm::RmsNorm(call, true))
