// y = x . W^T (+ bias), with an RMSNorm in front or a gated pair behind where the layer has one.
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"
#include "norm_operand.h"

namespace glm {
namespace {

enum class Form { kLinear, kNormLinear, kNormGatedLinear };

bool IsAllowed(DType weight, DType compute) {
  if (weight == DType::kF32) return compute == DType::kF32;
  return compute == weight || compute == DType::kF32;
}

// x f32[M, K] (, norm_weight f32[K] or [2, K], eps f32[1]), tiles [ceil(N/16), ceil(K/32), 16, 32],
// num_rows i32[1] (, num_split i32[1]) (, bias f32[N]) -> f32[M, N]
// Gated: twice as many tiles, alternating gate and up, no bias -> silu(gate) * up.
void Linear(const AotCall& call, Form form, DType compute, bool is_split = false) {
  const bool has_norm = form != Form::kLinear;
  const bool is_gated = form == Form::kNormGatedLinear;
  const int least = (has_norm ? 6 : 4) + is_split;
  call.ExpectParams(least, is_gated ? least : least + 1);
  const bool has_bias = call.num_params() > least;

  int index = 0;
  const Tensor x = call.Get(index++, "x", 2, {DType::kF32});
  const int64_t max_rows = x.shape[0], k = x.shape[1];
  LinearArgs args{};
  args.x = x.As<float>();
  args.k = k;
  if (has_norm) {
    SetNorm(call, index++, args);
    args.eps = call.GetFloat(index++, "eps");
  }
  const Tensor tiles = call.Get(index++, "weight", 4, {DType::kF32, DType::kBF16, DType::kF16});
  args.num_rows = call.GetCount(index++, "num_rows", max_rows);
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  args.n = y.shape[1];
  if (is_split) args.num_split = call.GetCount(index++, "num_split", args.n);
  if (has_bias) {
    const Tensor bias = call.Get(index++, "bias", 1, {DType::kF32});
    ExpectSize(bias, 0, args.n);
    args.bias = bias.As<float>();
  }
  ExpectSize(y, 0, max_rows);
  args.num_tiles = (args.n + kTileN - 1) / kTileN * (is_gated ? 2 : 1);
  ExpectSize(tiles, 0, args.num_tiles);
  ExpectSize(tiles, 1, (k + kTileK - 1) / kTileK);
  ExpectSize(tiles, 2, kTileN);
  ExpectSize(tiles, 3, kTileK);
  Expect(IsAllowed(tiles.dtype, compute),
         "this weight type cannot be multiplied in the compute type asked for: "
         "use the weight's own type or float32");
  args.tiles = tiles.data;
  args.weight_dtype = tiles.dtype;
  args.compute_dtype = compute;
  args.is_gated = is_gated;
  args.y = y.As<float>();
  if (args.num_rows > 0 && args.n > 0) Kernels().linear(args);
}

}  // namespace
}  // namespace glm

#define GLM_LINEAR(symbol, form, ...) \
  GLM_OPERATOR(symbol, glm::Linear(call, glm::Form::form, glm::DType::__VA_ARGS__))

GLM_LINEAR(glm_linear_f32, kLinear, kF32)
GLM_LINEAR(glm_linear_bf16, kLinear, kBF16)
GLM_LINEAR(glm_linear_f16, kLinear, kF16)
GLM_LINEAR(glm_norm_linear_f32, kNormLinear, kF32)
GLM_LINEAR(glm_norm_linear_bf16, kNormLinear, kBF16)
GLM_LINEAR(glm_norm_linear_bf16x2, kNormLinear, kBF16, true)
GLM_LINEAR(glm_norm_linear_f16, kNormLinear, kF16)
GLM_LINEAR(glm_norm_gated_linear_f32, kNormGatedLinear, kF32)
GLM_LINEAR(glm_norm_gated_linear_bf16, kNormGatedLinear, kBF16)
GLM_LINEAR(glm_norm_gated_linear_f16, kNormGatedLinear, kF16)
