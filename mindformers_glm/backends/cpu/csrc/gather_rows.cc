// Copies rows or columns: of the rows those that are sampled, so that the LM head runs on those
// only.
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

// x f32[M, H], first i32[1], num_rows i32[1] -> f32[M, W], the columns from `first` on
void TakeColumns(const AotCall& call) {
  call.ExpectParams(4, 4);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  ExpectSize(y, 0, x.shape[0]);
  const int64_t width = y.shape[1];
  Expect(width <= x.shape[1], "the output has more columns than x");
  const int64_t first = call.GetCount(1, "first", x.shape[1] - width);
  const int64_t num_rows = call.GetCount(2, "num_rows", x.shape[0]);
  for (int64_t row = 0; row < num_rows; ++row) {
    std::memcpy(y.As<float>() + row * width, x.As<float>() + row * x.shape[1] + first,
                width * sizeof(float));
  }
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_gather_rows, glm::GatherRows(call))
GLM_OPERATOR(glm_take_columns, glm::TakeColumns(call))
