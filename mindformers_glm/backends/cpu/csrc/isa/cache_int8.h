// A head of one token rounded to the bytes of an int8 cache.
//
// Either with a scale of its own, absmax / 127, which is kept beside the bytes; or with the scales
// and offsets of its channels, which come with the checkpoint (msModelSlim's C8).
#pragma once

#include "../kernel_table.h"
#include "quantize_activations.h"

namespace glm::GLM_ISA {

constexpr float kMaxCacheInt = 127.0f, kMinCacheInt = -128.0f;

// Largest magnitude of `count` elements; a NaN or an infinity where there is one.
inline float FindAbsmax(const float* x, int64_t count) {
  Vec most = Zero(), not_finite = Zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadPartial(x + i, count - i < kLanes ? count - i : kLanes);
    most = Max(Magnitude(v), most);
    not_finite = MulAdd(v, Zero(), not_finite);
  }
  return LargestLane(most) + Sum(not_finite);
}

// Writes rint(x * (largest / absmax)) in whole vectors and returns absmax / largest. What is tiny
// counts as zero; what is not a number makes the scale one, and the integers zeros.
inline float QuantizeByAbsmax(const float* x, int64_t count, float largest, int32_t* integers) {
  const float absmax = FindAbsmax(x, count);
  const bool is_number = absmax >= kLeastActivation && absmax - absmax == 0.0f;
  const Vec inverse = Set1(is_number ? largest / absmax : 0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadPartial(x + i, count - i < kLanes ? count - i : kLanes);
    StoreInts(integers + i, is_number ? RoundToInt(Mul(v, inverse)) : SetInt(0));
  }
  return absmax < kLeastActivation ? 0.0f : absmax / largest;
}

// Writes clip(rint(x / scale + offset), -128, 127) in whole vectors.
inline void QuantizeByChannels(const float* x, int64_t count, const float* scale,
                               const float* offset, int32_t* integers) {
  const Vec minus_one = Set1(-1.0f), least = Set1(kMinCacheInt), least_negative = Set1(-kMaxCacheInt);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i < kLanes ? count - i : kLanes;
    const Vec steps = Add(Div(LoadPartial(x + i, left), LoadPartial(scale + i, left)),
                          LoadPartial(offset + i, left));
    const Vec bounded = Mul(Max(Mul(Max(steps, least), minus_one), least_negative), minus_one);
    StoreInts(integers + i, RoundToInt(bounded));
  }
}

// `x`, head `head` of the token at `place`, to its bytes at `out`.
inline void StoreInt8(const CacheChannels& channels, float* scales, int64_t place, int64_t head,
                      int64_t head_dim, const float* x, uint8_t* out) {
  alignas(64) int32_t integers[kMaxInt8HeadDim];
  if (scales != nullptr) {
    scales[place] = QuantizeByAbsmax(x, head_dim, kMaxCacheInt, integers);
  } else {
    const int64_t begin = head * head_dim;
    QuantizeByChannels(x, head_dim, channels.scale + begin, channels.offset + begin, integers);
  }
  for (int64_t d = 0; d < head_dim; ++d) out[d] = static_cast<uint8_t>(integers[d] + kCacheZero);
}

}  // namespace glm::GLM_ISA
