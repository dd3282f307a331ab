// Sixteen 32-bit integers as four NEON registers; dot_int_portable.h says what each function must
// do.
#pragma once

#include <arm_neon.h>

#include "../kernel_table.h"

namespace glm::GLM_ISA {

struct IntVec {
  int32x4_t q0, q1, q2, q3;
};

inline IntVec SetInt(int32_t value) {
  const int32x4_t all = vdupq_n_s32(value);
  return {all, all, all, all};
}
inline IntVec AddInt(const IntVec& a, const IntVec& b) {
  return {vaddq_s32(a.q0, b.q0), vaddq_s32(a.q1, b.q1), vaddq_s32(a.q2, b.q2),
          vaddq_s32(a.q3, b.q3)};
}
template <int kShift, int32_t kMask>
inline Vec WidenBits(const uint8_t* line) {
  const auto widen = [&](int quarter) {
    uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(line + 16 * quarter));
    if constexpr (kShift > 0) words = vshrq_n_u32(words, kShift);
    return vcvtq_f32_u32(vandq_u32(words, vdupq_n_u32(kMask)));
  };
  return {widen(0), widen(1), widen(2), widen(3)};
}
inline IntVec LoadZeros(const uint8_t* zeros) {
  const uint8x16_t bytes = vld1q_u8(zeros);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
          vreinterpretq_s32_u32(vmovl_high_u16(low)),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
          vreinterpretq_s32_u32(vmovl_high_u16(high))};
}
inline IntVec TimesZeros(const IntVec& zeros, int32_t negative_sum) {
  return {vmulq_n_s32(zeros.q0, negative_sum), vmulq_n_s32(zeros.q1, negative_sum),
          vmulq_n_s32(zeros.q2, negative_sum), vmulq_n_s32(zeros.q3, negative_sum)};
}
inline IntVec JoinPlanes(const IntVec& high, const IntVec& low) {
  return AddInt({vshlq_n_s32(high.q0, 8), vshlq_n_s32(high.q1, 8), vshlq_n_s32(high.q2, 8),
                 vshlq_n_s32(high.q3, 8)},
                low);
}
inline Vec ToFloats(const IntVec& a) {
  return {vcvtq_f32_s32(a.q0), vcvtq_f32_s32(a.q1), vcvtq_f32_s32(a.q2), vcvtq_f32_s32(a.q3)};
}
inline IntVec RoundToInt(const Vec& a) {
  return {vcvtnq_s32_f32(a.q0), vcvtnq_s32_f32(a.q1), vcvtnq_s32_f32(a.q2), vcvtnq_s32_f32(a.q3)};
}
inline void StoreInts(int32_t* dst, const IntVec& a) { std::memcpy(dst, &a, sizeof(a)); }
inline IntVec LoadInts(const int32_t* src) { return LoadRegister<IntVec>(src); }

constexpr int64_t kInterleaved = 16;
inline void InterleaveRows(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d,
                           uint8_t* lines, int64_t /*line_stride*/) {
  vst4q_u8(lines, {{vld1q_u8(a), vld1q_u8(b), vld1q_u8(c), vld1q_u8(d)}});
}

}  // namespace glm::GLM_ISA
