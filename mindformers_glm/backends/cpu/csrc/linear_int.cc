// y = x . W^T (+ bias) for integer weights, with an RMSNorm in front or a gated pair behind where
// the layer has one.
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"
#include "norm_operand.h"

namespace glm {
namespace {

enum class Form { kLinear, kNormLinear, kNormGatedLinear };

// x f32[M, K] (, norm_weight f32[K] or [2, K], eps f32[1]),
// tiles u8[ceil(N/16), ceil(K/64), 16, 64] of int8 or u8[ceil(N/16), ceil(K/128), 16, 64] of int4,
// scales f32[ceil(N/16), groups, 16], num_rows i32[1] (, bias f32[N]) -> f32[M, N]
// Gated: twice as many tiles, alternating gate and up, no bias -> silu(gate) * up.
void LinearInt(const AotCall& call, Form form, int weight_bits, int activation_bits) {
  const bool has_norm = form != Form::kLinear;
  const bool is_gated = form == Form::kNormGatedLinear;
  const int least = has_norm ? 7 : 5;
  call.ExpectParams(least, is_gated ? least : least + 1);

  int index = 0;
  LinearIntArgs args{};
  LinearArgs& linear = args.linear;
  args.weight_bits = weight_bits;
  args.activation_bits = activation_bits;
  const Tensor x = call.Get(index++, "x", 2, {DType::kF32});
  const int64_t max_rows = x.shape[0];
  linear.x = x.As<float>();
  linear.k = x.shape[1];
  if (has_norm) {
    SetNorm(call, index++, linear);
    linear.eps = call.GetFloat(index++, "eps");
  }
  const Tensor tiles = call.Get(index++, "weight", 4, {DType::kU8});
  const Tensor scales = call.Get(index++, "scales", 3, {DType::kF32});
  linear.num_rows = call.GetCount(index++, "num_rows", max_rows);
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  ExpectSize(y, 0, max_rows);
  linear.n = y.shape[1];
  linear.y = y.As<float>();
  if (call.num_params() > least) {
    const Tensor bias = call.Get(index++, "bias", 1, {DType::kF32});
    ExpectSize(bias, 0, linear.n);
    linear.bias = bias.As<float>();
  }
  linear.is_gated = is_gated;
  linear.num_tiles = CeilDiv(linear.n, kTileN) * (is_gated ? 2 : 1);
  linear.tiles = tiles.data;
  const int64_t tiles_k = CeilDiv(linear.k, IntTileK(weight_bits));
  ExpectSize(tiles, 0, linear.num_tiles);
  ExpectSize(tiles, 1, tiles_k);
  ExpectSize(tiles, 2, kIntTileBytes / kIntLineBytes);
  ExpectSize(tiles, 3, kIntLineBytes);
  ExpectSize(scales, 0, linear.num_tiles);
  ExpectSize(scales, 2, kTileN);
  args.scales = scales.As<float>();
  if (weight_bits == 8) {
    ExpectSize(scales, 1, 1);
  } else if (linear.k > 0) {
    const int64_t num_groups = scales.shape[1], columns = tiles_k * IntTileK(weight_bits);
    args.group_size = num_groups > 0 ? columns / num_groups : 0;
    Expect(IsWeightGroup(args.group_size) && args.group_size * num_groups == columns, [&] {
      return "scales has size " + std::to_string(num_groups) + " on axis 1 for " +
             std::to_string(columns) + " columns, expected groups of 32, 64 or 128";
    });
  }
  if (linear.num_rows > 0 && linear.n > 0) Kernels().linear_int(args);
}

}  // namespace
}  // namespace glm

#define GLM_LINEAR_INT(symbol, form, weight_bits, activation_bits) \
  GLM_OPERATOR(symbol##_w##weight_bits##a##activation_bits,        \
               glm::LinearInt(call, glm::Form::form, weight_bits, activation_bits))
#define GLM_LINEAR_INT_ALL(symbol, form) \
  GLM_LINEAR_INT(symbol, form, 8, 8)     \
  GLM_LINEAR_INT(symbol, form, 8, 16)    \
  GLM_LINEAR_INT(symbol, form, 4, 8)     \
  GLM_LINEAR_INT(symbol, form, 4, 16)

GLM_LINEAR_INT_ALL(glm_linear, kLinear)
GLM_LINEAR_INT_ALL(glm_norm_linear, kNormLinear)
GLM_LINEAR_INT_ALL(glm_norm_gated_linear, kNormGatedLinear)
