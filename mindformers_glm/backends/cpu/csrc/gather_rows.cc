// Copies the rows that are sampled, so that the LM head runs on those only.
#include <cstring>
#include <stdexcept>
#include <string>

#include "aot.h"

namespace glm {
namespace {

// x f32[M, H], rows i32[S], num_samples i32[1] -> f32[S, H]
void GatherRows(const AotCall& call) {
  call.ExpectParams(4, 4);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor rows = call.Get(1, "rows", 1, {DType::kI32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  const int64_t num_samples = call.GetCount(2, "num_samples", rows.shape[0]);
  const int64_t width = x.shape[1];
  ExpectSize(y, 0, rows.shape[0]);
  ExpectSize(y, 1, width);
  for (int64_t s = 0; s < num_samples; ++s) {
    const int32_t row = rows.As<int32_t>()[s];
    Expect(row >= 0 && row < x.shape[0], [&] {
      return "sampled row " + std::to_string(row) + " is outside the " +
             std::to_string(x.shape[0]) + " rows";
    });
    std::memcpy(y.As<float>() + s * width, x.As<float>() + row * width, width * sizeof(float));
  }
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_gather_rows, glm::GatherRows(call))
