// Products of bfloat16 pairs, summed in float32 by vdpbf16ps.
#pragma once

#include "../kernel_table.h"

namespace glm::GLM_ISA {

struct DotBf16 {
  using Weight = bf16_t;
  using Rounding = bf16_t;
  using Activation = bf16_t;
  static constexpr int kStep = 2 * kLanes;
  static Vec MultiplyAdd(const bf16_t* weight, const bf16_t* x, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(weight),
                            (__m512bh)_mm512_loadu_si512(x));
  }
};

}  // namespace glm::GLM_ISA
