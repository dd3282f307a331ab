// Adds a branch's output to the residual stream, where no norm stands between them.
#include <cstdint>

#include "aot.h"

namespace glm {
namespace {

// branch f32[M, H], residual f32[M, H], num_rows i32[1] -> f32[M, H]
void ResidualAdd(const AotCall& call) {
  call.ExpectParams(4, 4);
  const Tensor branch = call.Get(0, "branch", 2, {DType::kF32});
  const Tensor residual = call.Get(1, "residual", 2, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  for (int axis = 0; axis < 2; ++axis) {
    ExpectSize(residual, axis, branch.shape[axis]);
    ExpectSize(y, axis, branch.shape[axis]);
  }
  const int64_t count = call.GetCount(2, "num_rows", branch.shape[0]) * branch.shape[1];
  const float* a = branch.As<float>();
  const float* b = residual.As<float>();
  float* sum = y.As<float>();
  // Bound by memory: the vectors that every machine of its kind has are enough.
#pragma omp parallel for simd schedule(static) if (count > 65536)
  for (int64_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_residual_add, glm::ResidualAdd(call))
