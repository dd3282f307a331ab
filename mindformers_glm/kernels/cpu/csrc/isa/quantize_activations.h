// Rows of activations as integers: for each 128 columns a scale, and symmetric integers of 8 or
// 16 bits.
#pragma once

#include "../kernel_table.h"
#include "../scratch.h"
#include "norm.h"
#include "quantize.h"

namespace glm::GLM_ISA {

// Two signed bytes, 256 * high + low, reach from -32639 to 32639 alike.
constexpr float kMaxActivation8 = 127.0f, kMaxActivation16 = 32639.0f;
// Groups below count as zero: the inverse of their scale would leave the range of float32.
constexpr float kLeastActivation = 0x1p-100f;

// Quantized activations of all rows, each filled up with zeros to whole groups of 128.
struct ActivationRows {
  Scratch value_scratch, scale_scratch, correction_scratch;
  IntElement* values = nullptr;    // [rows][planes][columns]
  float* scales = nullptr;         // [rows][num_groups]
  int32_t* corrections = nullptr;  // [rows][planes][num_groups]: -zero point * sum of the group
  int64_t plane_stride = 0, row_stride = 0;
  int64_t group_size = 0;  // columns after which products are scaled: at most a weight group
  int64_t num_groups = 0;
  int num_planes = 0;
  int32_t zero_point = 0;
  float largest = 0.0f;

  void Reserve(const LinearArgs& args, int activation_bits, int64_t columns_per_group,
               int32_t zero, int64_t row_room) {
    const int64_t padded_k = CeilDiv(args.k, kActivationGroup) * kActivationGroup;
    // An odd number of cache lines: rows at a distance of a power of 2 would drive each other out
    // of the cache.
    constexpr int64_t kLine = 64 / sizeof(IntElement);
    num_planes = NumPlanes(activation_bits);
    plane_stride = padded_k;
    row_stride = (num_planes * padded_k / kLine | 1) * kLine;
    group_size = columns_per_group;
    num_groups = padded_k / columns_per_group;
    zero_point = zero;
    largest = activation_bits == 8 ? kMaxActivation8 : kMaxActivation16;
    values = value_scratch.Reserve<IntElement>(row_room * row_stride);
    scales = scale_scratch.Reserve<float>(args.num_rows * num_groups);
    corrections = correction_scratch.Reserve<int32_t>(args.num_rows * num_planes * num_groups);
  }

  const IntElement* Values(int64_t row) const { return values + row * row_stride; }
  const float* Scales(int64_t row) const { return scales + row * num_groups; }
  const int32_t* Corrections(int64_t row) const {
    return corrections + row * num_planes * num_groups;
  }

  // Normalises (where there is a norm) and quantizes one row.
  void Quantize(const LinearArgs& args, int64_t row) const {
    const float* x = args.x + row * args.k;
    const bool has_norm = args.norm_weight != nullptr;
    const Vec inverse = Set1(has_norm ? InverseRms(x, args.k, args.eps) : 1.0f);
    for (int64_t begin = 0; begin < args.k; begin += kActivationGroup) {
      alignas(64) float group[kActivationGroup];
      for (int64_t i = 0; i < kActivationGroup; i += kLanes) {
        const int64_t left = args.k - begin - i;
        const int64_t count = left < 0 ? 0 : left < kLanes ? left : kLanes;
        Vec v = LoadPartial(x + begin + i, count);
        if (has_norm) v = Mul(Mul(v, inverse), LoadPartial(args.norm_weight + begin + i, count));
        Store(group + i, v);
      }
      QuantizeGroup(group, row, begin);
    }
  }

 private:
  // The 128 columns from `begin` on.
  void QuantizeGroup(const float* group, int64_t row, int64_t begin) const {
    Vec most = Zero(), not_finite = Zero();  // stays zero unless there is an infinity or a NaN
    for (int64_t i = 0; i < kActivationGroup; i += kLanes) {
      const Vec v = Load(group + i);
      most = Max(Magnitude(v), most);
      not_finite = MulAdd(v, Zero(), not_finite);
    }
    const float absmax = LargestLane(most) + Sum(not_finite);
    const bool is_number = absmax >= kLeastActivation;
    const Vec inverse_scale = Set1(is_number ? largest / absmax : 0.0f);
    alignas(64) int32_t integers[kActivationGroup] = {};
    for (int64_t i = 0; is_number && i < kActivationGroup; i += kLanes) {
      StoreInts(integers + i, RoundToInt(Mul(Load(group + i), inverse_scale)));
    }
    IntElement* out = values + row * row_stride + begin;
    StoreActivations(integers, out, num_planes, plane_stride);
    // What is not a number makes the scale one, and with it the row's results.
    const float scale = absmax < kLeastActivation ? 0.0f : absmax / largest;
    for (int64_t i = 0; i < kActivationGroup; i += group_size) {
      const int64_t index = (begin + i) / group_size;
      scales[row * num_groups + index] = scale;
      for (int p = 0; p < num_planes; ++p) {
        int32_t sum = 0;
        for (int64_t j = i; j < i + group_size; ++j) sum += out[p * plane_stride + j];
        corrections[(row * num_planes + p) * num_groups + index] = -zero_point * sum;
      }
    }
  }
};

}  // namespace glm::GLM_ISA
