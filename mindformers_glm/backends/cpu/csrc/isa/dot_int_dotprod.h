// Products of 16 signed bytes with four of an activation row, summed in fours by sdot.
#pragma once

#include "int_neon.h"

namespace glm::GLM_ISA {

using IntElement = int8_t;
constexpr int NumPlanes(int activation_bits) { return activation_bits / 8; }
// Bytes are taken as signed when they are loaded.
constexpr int32_t kByteZero = 0;

// Of 32 registers: 16 to 24 of sums, 4 or 8 of weights, the activations.
constexpr int kSingleTokenRows = 2;
constexpr int kIntBlockTokens = 6, kIntBlockRows = 1;
constexpr int kSumsAtOnce = 4;
constexpr int kRowBlockTokens = kIntBlockTokens, kRowBlockRows = kIntBlockRows;

struct Bytes {
  uint8x16_t q0, q1, q2, q3;
};
struct Nibbles {
  Bytes low, high;
};
using Quad = int8x16_t;

inline Bytes LoadBytes(const uint8_t* src) { return LoadRegister<Bytes>(src); }
inline Quad LoadQuad(const IntElement* src) {
  return vreinterpretq_s8_u32(vdupq_n_u32(LoadRegister<uint32_t>(src)));
}
inline Nibbles Split(const Bytes& w) {
  const uint8x16_t mask = vdupq_n_u8(15);
  return {{vandq_u8(w.q0, mask), vandq_u8(w.q1, mask), vandq_u8(w.q2, mask), vandq_u8(w.q3, mask)},
          {vshrq_n_u8(w.q0, 4), vshrq_n_u8(w.q1, 4), vshrq_n_u8(w.q2, 4), vshrq_n_u8(w.q3, 4)}};
}

// For bytes below 128.
inline IntVec DotSmall(const IntVec& sum, const Bytes& w, Quad x) {
  return {vdotq_s32(sum.q0, vreinterpretq_s8_u8(w.q0), x),
          vdotq_s32(sum.q1, vreinterpretq_s8_u8(w.q1), x),
          vdotq_s32(sum.q2, vreinterpretq_s8_u8(w.q2), x),
          vdotq_s32(sum.q3, vreinterpretq_s8_u8(w.q3), x)};
}
inline IntVec DotBytes(const IntVec& sum, const Bytes& w, Quad x) {
  const uint8x16_t sign = vdupq_n_u8(128);  // w - 128 as a signed byte
  return DotSmall(
      sum, {veorq_u8(w.q0, sign), veorq_u8(w.q1, sign), veorq_u8(w.q2, sign), veorq_u8(w.q3, sign)},
      x);
}
inline IntVec DotLow(const IntVec& sum, const Nibbles& w, Quad x) {
  return DotSmall(sum, w.low, x);
}
inline IntVec DotHigh(const IntVec& sum, const Nibbles& w, Quad x) {
  return DotSmall(sum, w.high, x);
}

template <int64_t kCount = kActivationGroup>
inline void StoreActivations(const int32_t* values, IntElement* out, int num_planes,
                             int64_t plane_stride) {
  for (int i = 0; i < kCount; ++i) {
    const int8_t low = static_cast<int8_t>(values[i]);
    if (num_planes == 1) {
      out[i] = low;
    } else {
      out[i] = static_cast<int8_t>((values[i] - low) >> 8);
      out[plane_stride + i] = low;
    }
  }
}

inline IntVec DotUnsigned(const IntVec& sum, const Bytes& w, Quad x) {
  const uint8x16_t u = vreinterpretq_u8_s8(x);
  const auto dot = [u](int32x4_t part, uint8x16_t bytes) {
    return vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(part), bytes, u));
  };
  return {dot(sum.q0, w.q0), dot(sum.q1, w.q1), dot(sum.q2, w.q2), dot(sum.q3, w.q3)};
}
constexpr int32_t kUnsignedByteZero = 128;

}  // namespace glm::GLM_ISA
