// The norm in front of a linear layer, as its operators are given it.
#pragma once

#include "aot.h"
#include "kernel_table.h"

namespace glm {

// norm_weight f32[K]; or f32[2, K], whose second row is a bias: what tools that shift activations
// leave behind the norm.
inline void SetNorm(const AotCall& call, int index, LinearArgs& args) {
  const bool has_bias = call.num_dimensions(index) == 2;
  const Tensor norm = call.Get(index, "norm_weight", has_bias ? 2 : 1, {DType::kF32});
  if (has_bias) ExpectSize(norm, 0, 2);
  ExpectSize(norm, has_bias ? 1 : 0, args.k);
  args.norm_weight = norm.As<float>();
  if (has_bias) args.norm_bias = args.norm_weight + args.k;
}

}  // namespace glm
