// Products of bfloat16 pairs, summed in float32 by vdpbf16ps: both columns of a line at once.
#pragma once

#include "../kernel_table.h"

namespace glm::GLM_ISA {

struct DotBf16 {
  using Weight = bf16_t;
  using Rounding = bf16_t;
  using Activation = bf16_t;
  using Operand = __m512i;
  static constexpr int kSteps = 1;
  static __m512i LoadWeights(const bf16_t* line, int) { return _mm512_loadu_si512(line); }
  static __m512i LoadActivation(const bf16_t* x, int) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static Vec MultiplyAdd(__m512i w, __m512i x, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
};

}  // namespace glm::GLM_ISA
