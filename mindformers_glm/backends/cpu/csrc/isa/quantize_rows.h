// Rows of activations as bytes with one scale for a whole row: its own, as a card's DynamicQuant
// gives it, or one of all rows with an offset.
#pragma once

#include "../kernel_table.h"
#include "quantize_activations.h"

namespace glm::GLM_ISA {

// Whether a row has a scale of its own.
inline bool IsTokenRow(const LinearIntArgs& args, int64_t row) {
  return args.activation_scale == ActivationScale::kToken ||
         (args.activation_scale == ActivationScale::kMixed && args.is_prompt[row] != 0);
}

// How one row becomes integers: rint(x / step + offset), from -128 to 127.
struct RowScale {
  float step;
  float offset;
  float factor;  // of the row's results, besides those of the weights; no number where x has none
};

// Writes a row, normalised where there is a norm, with zeros up to whole groups of 128. Returns its
// largest magnitude; no number where there is an infinity or a NaN.
inline float CopyRow(const LinearArgs& args, int64_t row, float* out) {
  const float* x = args.x + row * args.k;
  const bool has_norm = args.norm_weight != nullptr;
  const Vec inverse = Set1(has_norm ? InverseRms(x, args.k, args.eps) : 1.0f);
  const int64_t padded_k = CeilDiv(args.k, kActivationGroup) * kActivationGroup;
  Vec most = Zero(), not_finite = Zero();
  for (int64_t i = 0; i < padded_k; i += kLanes) {
    const int64_t left = args.k - i;
    const int64_t count = left < 0 ? 0 : left < kLanes ? left : kLanes;
    Vec v = LoadPartial(x + i, count);
    if (has_norm) v = Mul(Mul(v, inverse), LoadPartial(args.norm_weight + i, count));
    if (args.norm_bias != nullptr) v = Add(v, LoadPartial(args.norm_bias + i, count));
    most = Max(Magnitude(v), most);
    not_finite = MulAdd(v, Zero(), not_finite);
    Store(out + i, v);
  }
  return LargestLane(most) + Sum(not_finite);
}

inline RowScale ScaleOfRow(const LinearIntArgs& args, int64_t row, float absmax) {
  if (!IsTokenRow(args, row)) {
    return {args.input_scale, args.input_offset, absmax - absmax == 0.0f ? 1.0f : absmax - absmax};
  }
  if (args.row_maxima != nullptr) absmax = args.row_maxima[row];  // no less, nor more of a number
  if (absmax < kLeastActivation) return {1.0f, 0.0f, 0.0f};
  return {absmax / kMaxActivation8, 0.0f, absmax / kMaxActivation8};
}

// The integers of 128 columns from `begin` on. Columns behind the last are zeros, not the offset.
inline void QuantizeColumns(const RowScale& scale, const float* columns, int64_t begin, int64_t k,
                            int32_t* integers) {
  // To divide is what a card does; a product with the inverse lands on other integers.
  const Vec step = Set1(scale.step), offset = Set1(scale.offset);
  const Vec least = Set1(-128.0f), largest = Set1(127.0f);
  const bool is_number = scale.factor - scale.factor == 0.0f;
  for (int64_t i = 0; i < kActivationGroup; i += kLanes) {
    const Vec v = Max(Add(Div(Load(columns + i), step), offset), least);
    const IntVec rounded = RoundToInt(SelectLessEqual(v, largest, v, largest));
    StoreInts(integers + i, is_number ? rounded : SetInt(0));
  }
  for (int64_t i = k - begin; i < kActivationGroup; ++i) integers[i] = 0;
}

// Rows for products with int4 weights, whose groups have scales: those of activations are 1, and
// results are multiplied by `row_factors` at the end.
inline void QuantizeToken(const ActivationRows& rows, const LinearIntArgs& args, int64_t row,
                          float* floats, float* row_factors) {
  const LinearArgs& linear = args.linear;
  const RowScale scale = ScaleOfRow(args, row, CopyRow(linear, row, floats));
  row_factors[row] = scale.factor;
  for (int64_t begin = 0; begin < linear.k; begin += kActivationGroup) {
    alignas(64) int32_t integers[kActivationGroup];
    QuantizeColumns(scale, floats + begin, begin, linear.k, integers);
    IntElement line[kActivationGroup];
    IntElement* in_row = rows.values + row * rows.row_stride + begin;
    StoreActivations(integers, rows.in_tiles ? line : in_row, 1, 0);
    if (rows.in_tiles) rows.StoreInTiles(line, row, begin);
    for (int64_t i = 0; i < kActivationGroup; i += rows.group_size) {
      const int64_t place = (begin + i) / rows.group_size * rows.num_rows + row;
      int32_t sum = 0;
      for (int64_t j = i; j < i + rows.group_size; ++j) sum += integers[j];
      rows.scales[place] = 1.0f;
      rows.corrections[place] = -rows.zero_point * sum;
    }
  }
}

}  // namespace glm::GLM_ISA
