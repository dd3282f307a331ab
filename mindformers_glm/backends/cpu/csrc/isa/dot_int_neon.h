// Integer products by multiply-adds of 16 bits, for processors without dot products.
#pragma once

#include "int_neon.h"

namespace glm::GLM_ISA {

using IntElement = int16_t;
constexpr int NumPlanes(int /*activation_bits*/) { return 1; }
constexpr int32_t kByteZero = 128;

// Of 32 registers: 16 of sums, 8 of weights that are widened, the activations.
constexpr int kSingleTokenRows = 1;
constexpr int kIntBlockTokens = 4, kIntBlockRows = 1;
constexpr int kSumsAtOnce = 4;
constexpr int kRowBlockTokens = kIntBlockTokens, kRowBlockRows = kIntBlockRows;

// One column of the 16 rows in each register.
struct Bytes {
  uint8x16_t c0, c1, c2, c3;
};
struct Nibbles {
  Bytes low, high;
};
using Quad = int16x4_t;

inline Bytes LoadBytes(const uint8_t* src) {
  const uint8x16x4_t columns = vld4q_u8(src);
  return {columns.val[0], columns.val[1], columns.val[2], columns.val[3]};
}
inline Quad LoadQuad(const IntElement* src) { return LoadRegister<Quad>(src); }
inline Nibbles Split(const Bytes& w) {
  const uint8x16_t mask = vdupq_n_u8(15);
  return {{vandq_u8(w.c0, mask), vandq_u8(w.c1, mask), vandq_u8(w.c2, mask), vandq_u8(w.c3, mask)},
          {vshrq_n_u8(w.c0, 4), vshrq_n_u8(w.c1, 4), vshrq_n_u8(w.c2, 4), vshrq_n_u8(w.c3, 4)}};
}

// sum + w[n] * x[kColumn]
template <int kColumn>
inline IntVec DotColumn(const IntVec& sum, uint8x16_t w, Quad x) {
  const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
  const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(w));
  return {vmlal_lane_s16(sum.q0, vget_low_s16(low), x, kColumn),
          vmlal_high_lane_s16(sum.q1, low, x, kColumn),
          vmlal_lane_s16(sum.q2, vget_low_s16(high), x, kColumn),
          vmlal_high_lane_s16(sum.q3, high, x, kColumn)};
}
inline IntVec DotBytes(const IntVec& sum, const Bytes& w, Quad x) {
  const IntVec first = DotColumn<1>(DotColumn<0>(sum, w.c0, x), w.c1, x);
  return DotColumn<3>(DotColumn<2>(first, w.c2, x), w.c3, x);
}
inline IntVec DotLow(const IntVec& sum, const Nibbles& w, Quad x) {
  return DotBytes(sum, w.low, x);
}
inline IntVec DotHigh(const IntVec& sum, const Nibbles& w, Quad x) {
  return DotBytes(sum, w.high, x);
}

template <int64_t kCount = kActivationGroup>
inline void StoreActivations(const int32_t* values, IntElement* out, int /*num_planes*/,
                             int64_t /*plane_stride*/) {
  for (int i = 0; i < kCount; ++i) out[i] = static_cast<IntElement>(values[i]);
}

inline IntVec DotUnsigned(const IntVec& sum, const Bytes& w, const Quad& x) {
  return DotBytes(sum, w, x);
}
constexpr int32_t kUnsignedByteZero = 128;

}  // namespace glm::GLM_ISA
