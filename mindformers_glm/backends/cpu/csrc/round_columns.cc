// Activations rounded to int8 by a scale and an offset of each column, and back to floats: what a
// layer multiplies whose columns were quantized in parts.
#include <algorithm>
#include <cstdint>

#include "aot.h"

namespace glm {
namespace {

// Added to a number below 2^22 and taken off again, it leaves that rounded to nearest, ties to even.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// NaN stays NaN: it is neither below nor above.
inline float RoundColumn(float x, float scale, float offset) {
  const float limited = std::min(std::max(x / scale + offset, -128.0f), 127.0f);
  return (((limited + kRounder) - kRounder) - offset) * scale;
}

// x f32[M, K], steps f32[2, K] (scales, offsets), num_rows i32[1] -> f32[M, K]
void RoundColumns(const AotCall& call) {
  call.ExpectParams(4, 4);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor steps = call.Get(1, "steps", 2, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  const int64_t width = x.shape[1];
  ExpectSize(steps, 0, 2);
  ExpectSize(steps, 1, width);
  ExpectSize(y, 0, x.shape[0]);
  ExpectSize(y, 1, width);
  const int64_t num_rows = call.GetCount(2, "num_rows", x.shape[0]);
  const float* scales = steps.As<float>();
  const float* offsets = scales + width;
#pragma omp parallel for schedule(static) if (num_rows * width > 65536)
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* from = x.As<float>() + row * width;
    float* to = y.As<float>() + row * width;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) to[k] = RoundColumn(from[k], scales[k], offsets[k]);
  }
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_round_columns, glm::RoundColumns(call))
