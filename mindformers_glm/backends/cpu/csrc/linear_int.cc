// y = x . W^T (+ bias) for integer weights, with an RMSNorm in front or a gated pair behind where
// the layer has one.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"
#include "norm_operand.h"

namespace glm {
namespace {

enum class Form { kLinear, kNormLinear, kNormGatedLinear };

// Beside these weights and bytes no sum of so many products leaves 32 bits.
constexpr int64_t kMostColumns = 65536;

// Operands of a given scale, less the scales whose place they take.
int NumGivenOperands(ActivationScale scale) {
  return scale == ActivationScale::kStatic ? 2 : scale == ActivationScale::kMixed ? 4 : 0;
}

// deq_scale f32[tiles, 1, 16], quant_bias i32[tiles, 16], input f32[2] (scale, offset)
// (, is_prompt i32[M], which rows have a scale of their own)
void ReadGivenScale(const AotCall& call, int& index, int64_t max_rows, LinearIntArgs& args) {
  args.deq_scales = call.Get(index++, "deq_scale", 3, {DType::kF32}).As<float>();
  args.quant_bias = call.Get(index++, "quant_bias", 2, {DType::kI32}).As<int32_t>();
  const Tensor input = call.Get(index++, "input", 1, {DType::kF32});
  ExpectSize(input, 0, 2);
  args.input_scale = input.As<float>()[0];
  args.input_offset = input.As<float>()[1];
  if (args.activation_scale == ActivationScale::kMixed) {
    const Tensor is_prompt = call.Get(index++, "is_prompt", 1, {DType::kI32});
    ExpectSize(is_prompt, 0, max_rows);
    args.is_prompt = is_prompt.As<int32_t>();
  }
}

// Of the operands that ReadGivenScale has read, the sizes that follow from the weights.
void CheckWholeRows(const AotCall& call, const LinearIntArgs& args) {
  Expect(args.linear.k <= kMostColumns, [&] {
    return "a row has " + std::to_string(args.linear.k) + " columns, expected at most " +
           std::to_string(kMostColumns);
  });
  if (args.deq_scales == nullptr) return;
  const int first = (args.linear.norm_weight != nullptr ? 4 : 2) + (args.row_maxima != nullptr) +
                    (args.scales != nullptr);
  const Tensor deq_scale = call.Get(first, "deq_scale", 3, {DType::kF32});
  const Tensor quant_bias = call.Get(first + 1, "quant_bias", 2, {DType::kI32});
  for (const Tensor& tensor : {deq_scale, quant_bias}) {
    ExpectSize(tensor, 0, args.linear.num_tiles);
    ExpectSize(tensor, tensor.ndim - 1, kTileN);
  }
  ExpectSize(deq_scale, 1, 1);
}

const uint8_t* GetZeros(const AotCall& call, int index, const Tensor& scales) {
  const Tensor zeros = call.Get(index, "zeros", 3, {DType::kU8});
  for (int axis = 0; axis < 3; ++axis) ExpectSize(zeros, axis, scales.shape[axis]);
  return zeros.As<uint8_t>();
}

const int32_t* GetOrder(const AotCall& call, int index, int64_t k) {
  const Tensor order = call.Get(index, "order", 1, {DType::kI32});
  ExpectSize(order, 0, k);
  const int32_t* columns = order.As<int32_t>();
  uint32_t largest = 0;  // of negative numbers, too
  for (int64_t i = 0; i < k; ++i) largest = std::max(largest, static_cast<uint32_t>(columns[i]));
  Expect(k == 0 || largest < k, [&] {
    return "order names a column that there is not, expected 0 to " + std::to_string(k - 1);
  });
  return columns;
}

// x f32[M, K] (, norm_weight f32[K] or [2, K], eps f32[1]),
// tiles u8[ceil(N/16), ceil(K/64), 16, 64] of int8 or u8[ceil(N/16), ceil(K/128), 16, 64] of int4,
// scales f32[ceil(N/16), groups, 16] (, zeros u8 of the same shape) (, order i32[K]),
// num_rows i32[1] (, bias f32[N]) -> f32[M, N]
// Gated: twice as many tiles, alternating gate and up, no bias -> silu(gate) * up.
// Groups are of 32, 64 or 128 columns, all those of whole 128 columns; int8 may have one for a row.
// Zeros are in the unit of the tiles' unsigned codes; column c of the tiles is that of x at order[c].
// Where activations may have the scale that is given, in place of scales (kStatic) or behind them
// (kMixed): see ReadGivenScale. Where x is a part of the columns that a row's scale is of:
// row_maxima f32[M, 1] behind x, the largest magnitudes of the whole rows.
void LinearInt(const AotCall& call, Form form, int weight_bits, int activation_bits,
               bool has_zeros = false, bool is_ordered = false,
               ActivationScale activation_scale = ActivationScale::kGroup,
               bool has_row_maxima = false) {
  const bool has_norm = form != Form::kLinear;
  const bool is_gated = form == Form::kNormGatedLinear;
  const bool has_scales = activation_scale != ActivationScale::kStatic;
  const int least =
      (has_norm ? 7 : 5) + has_zeros + is_ordered + has_row_maxima +
      NumGivenOperands(activation_scale);
  call.ExpectParams(least, is_gated ? least : least + 1);

  int index = 0;
  LinearIntArgs args{};
  LinearArgs& linear = args.linear;
  args.weight_bits = weight_bits;
  args.activation_bits = activation_bits;
  args.activation_scale = activation_scale;
  const Tensor x = call.Get(index++, "x", 2, {DType::kF32});
  const int64_t max_rows = x.shape[0];
  linear.x = x.As<float>();
  linear.k = x.shape[1];
  if (has_row_maxima) {
    const Tensor row_maxima = call.Get(index++, "row_maxima", 2, {DType::kF32});
    ExpectSize(row_maxima, 0, max_rows);
    ExpectSize(row_maxima, 1, 1);
    args.row_maxima = row_maxima.As<float>();
  }
  if (has_norm) {
    SetNorm(call, index++, linear);
    linear.eps = call.GetFloat(index++, "eps");
  }
  const Tensor tiles = call.Get(index++, "weight", 4, {DType::kU8});
  const Tensor scales = call.Get(has_scales ? index++ : index, has_scales ? "scales" : "deq_scale",
                                 3, {DType::kF32});
  if (has_zeros) args.zeros = GetZeros(call, index++, scales);
  if (is_ordered) args.order = GetOrder(call, index++, linear.k);
  if (NumGivenOperands(activation_scale) > 0) ReadGivenScale(call, index, max_rows, args);
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
  args.scales = has_scales ? scales.As<float>() : nullptr;
  if (activation_scale != ActivationScale::kGroup && weight_bits == 8) CheckWholeRows(call, args);
  const int64_t num_groups = scales.shape[1];
  if (weight_bits == 8 && activation_bits == 8) {
    ExpectSize(scales, 1, 1);
  } else if (linear.k > 0 && !(weight_bits == 8 && num_groups == 1)) {
    const int64_t columns = CeilDiv(linear.k, kActivationGroup) * kActivationGroup;
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
// What only checkpoints have that are quantized already.
#define GLM_LINEAR_INT_STORED(symbol, form, weight_bits, activation_bits)                      \
  GLM_OPERATOR(symbol##_w##weight_bits##a##activation_bits##_zeros,                            \
               glm::LinearInt(call, glm::Form::form, weight_bits, activation_bits, true))      \
  GLM_OPERATOR(symbol##_w##weight_bits##a##activation_bits##_ordered,                          \
               glm::LinearInt(call, glm::Form::form, weight_bits, activation_bits, false, true)) \
  GLM_OPERATOR(symbol##_w##weight_bits##a##activation_bits##_zeros_ordered,                    \
               glm::LinearInt(call, glm::Form::form, weight_bits, activation_bits, true, true))
#define GLM_LINEAR_INT_ROW(symbol, form, weight_bits, suffix, scale)                    \
  GLM_OPERATOR(symbol##_w##weight_bits##a8##suffix,                                     \
               glm::LinearInt(call, glm::Form::form, weight_bits, 8, false, false,      \
                              glm::ActivationScale::scale))
#define GLM_LINEAR_INT_SHARED(weight_bits, suffix, scale)                               \
  GLM_OPERATOR(glm_linear_w##weight_bits##a8##suffix##_shared,                          \
               glm::LinearInt(call, glm::Form::kLinear, weight_bits, 8, false, false,   \
                              glm::ActivationScale::scale, true))
#define GLM_LINEAR_INT_ALL(symbol, form) \
  GLM_LINEAR_INT(symbol, form, 8, 8)     \
  GLM_LINEAR_INT(symbol, form, 8, 16)    \
  GLM_LINEAR_INT(symbol, form, 4, 8)     \
  GLM_LINEAR_INT(symbol, form, 4, 16)    \
  GLM_LINEAR_INT(symbol, form, 8, 32)    \
  GLM_LINEAR_INT(symbol, form, 4, 32)    \
  GLM_LINEAR_INT_STORED(symbol, form, 8, 16) \
  GLM_LINEAR_INT_STORED(symbol, form, 4, 16) \
  GLM_LINEAR_INT_STORED(symbol, form, 8, 32) \
  GLM_LINEAR_INT_STORED(symbol, form, 4, 32) \
  GLM_LINEAR_INT_ROW(symbol, form, 8, _token, kToken)   \
  GLM_LINEAR_INT_ROW(symbol, form, 4, _token, kToken)   \
  GLM_LINEAR_INT_ROW(symbol, form, 8, _static, kStatic) \
  GLM_LINEAR_INT_ROW(symbol, form, 8, _mixed, kMixed)

GLM_LINEAR_INT_ALL(glm_linear, kLinear)
GLM_LINEAR_INT_ALL(glm_norm_linear, kNormLinear)
GLM_LINEAR_INT_ALL(glm_norm_gated_linear, kNormGatedLinear)
// Ranks that share the columns of a layer share the scales of its activations' rows.
GLM_LINEAR_INT_SHARED(8, _token, kToken)
GLM_LINEAR_INT_SHARED(4, _token, kToken)
GLM_LINEAR_INT_SHARED(8, _mixed, kMixed)
