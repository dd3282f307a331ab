// RMSNorm of one row, for the operator itself and in front of linear layers.
#pragma once

#include <cmath>

#include "../kernel_table.h"

namespace glm::GLM_ISA {

// 1 / sqrt(mean(x^2) + eps), as transformers Glm4RMSNorm 4.51.3 computes it, in float32.
inline float InverseRms(const float* x, int64_t width, float eps) {
  // Four sums: one alone would wait for each multiply-add to end.
  Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const Vec v = Load(x + i + j * kLanes);
      sums[j] = MulAdd(v, v, sums[j]);
    }
  }
  for (; i < width; i += kLanes) {
    const Vec v = LoadPartial(x + i, width - i < kLanes ? width - i : kLanes);
    sums[0] = MulAdd(v, v, sums[0]);
  }
  const float sum = Sum(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
  return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

inline void RmsNormRow(const RmsNormArgs& args, int64_t row) {
  const float* x = args.x + row * args.width;
  const float* residual = args.residual != nullptr ? args.residual + row * args.width : nullptr;
  float* y = args.y + row * args.width;
  const Vec inverse = Set1(InverseRms(x, args.width, args.eps));
  for (int64_t i = 0; i < args.width; i += kLanes) {
    const int64_t count = args.width - i < kLanes ? args.width - i : kLanes;
    const Vec weight = LoadPartial(args.weight + i, count);
    const Vec normed = Mul(Mul(LoadPartial(x + i, count), inverse), weight);
    const Vec out = residual ? Add(LoadPartial(residual + i, count), normed) : normed;
    StorePartial(y + i, out, count);
  }
}

inline void RmsNorm(const RmsNormArgs& args) {
#pragma omp parallel for schedule(static) if (args.num_rows * args.width > 65536)
  for (int64_t row = 0; row < args.num_rows; ++row) RmsNormRow(args, row);
}

}  // namespace glm::GLM_ISA
