// Sixteen float lanes as four NEON registers; vec_portable.h says what each function must do.
#pragma once

#include <arm_neon.h>

namespace glm::GLM_ISA {

constexpr int kLanes = 16;

// Named members: GCC keeps them in registers where it would put an array on the stack.
struct Vec {
  float32x4_t q0, q1, q2, q3;
};

// Of 32 registers: 12 to 24 of sums, the rest for weights, keys or values and a broadcast number.
constexpr int kTokenBlock = 6;
constexpr int kTileRowsForTokens[kTokenBlock + 1] = {0, 3, 2, 1, 1, 1, 1};
constexpr int kScoreKeys = 4;
constexpr int kScoreVecs = 1;
constexpr int kManyQueries = 6;
constexpr int kValueQueries = 2;
constexpr int kValueVecs = 2;

// The results of `function` on each quarter of some vectors.
template <typename Function, typename... Vecs>
inline Vec ForQuarters(Function&& function, const Vecs&... vecs) {
  return {function(vecs.q0...), function(vecs.q1...), function(vecs.q2...), function(vecs.q3...)};
}

// Asks for kBytes, into the second-level cache; any address will do. Always inlined: some calls of
// it gcc 12 would drop, as it takes them to have no effect.
template <int kBytes>
[[gnu::always_inline]] inline void Prefetch(const void* address) {
  for (int i = 0; i < kBytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(address) + i, 0, 2);
  }
}
// The line at `address`, which is read once: into the first-level cache, past the others.
[[gnu::always_inline]] inline void PrefetchOnce(const void* address) {
  __builtin_prefetch(address, 0, 0);
}

inline Vec Set1(float value) {
  const float32x4_t all = vdupq_n_f32(value);
  return {all, all, all, all};
}
inline Vec Zero() { return Set1(0.0f); }

inline float32x4_t FromBits(uint16x4_t bits, const bf16_t*) {
  return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}
inline float32x4_t FromBits(uint16x4_t bits, const f16_t*) {
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}

inline uint16x4_t ToBits(float32x4_t a, const bf16_t*) {
  // Not bfcvtn: that needs ARMv8.6, and storing is not where time is spent.
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t high = vshrq_n_u32(bits, 16);
  const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t sum = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet_nan = vorrq_u32(high, vdupq_n_u32(0x40));
  return vmovn_u32(vbslq_u32(vceqq_f32(a, a), vshrq_n_u32(sum, 16), quiet_nan));
}
inline uint16x4_t ToBits(float32x4_t a, const f16_t*) {
  return vreinterpret_u16_f16(vcvt_f16_f32(a));
}

// Copies, as vld1q_f32 may take its address to be a multiple of four.
template <typename Register>
inline Register LoadRegister(const void* src) {
  Register out;
  std::memcpy(&out, src, sizeof(out));
  return out;
}

inline Vec Load(const float* src) { return LoadRegister<Vec>(src); }
template <typename T>
inline Vec Load(const T* src) {
  const uint16x8_t low = LoadRegister<uint16x8_t>(src), high = LoadRegister<uint16x8_t>(src + 8);
  return {FromBits(vget_low_u16(low), src), FromBits(vget_high_u16(low), src),
          FromBits(vget_low_u16(high), src), FromBits(vget_high_u16(high), src)};
}
inline Vec LoadEven(const bf16_t* src) {
  return ForQuarters(
      [](float32x4_t pairs) {
        return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(pairs), 16));
      },
      LoadRegister<Vec>(src));
}
inline Vec LoadOdd(const bf16_t* src) {
  return ForQuarters(
      [](float32x4_t pairs) {
        const uint32x4_t upper = vdupq_n_u32(0xffff0000u);
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs), upper));
      },
      LoadRegister<Vec>(src));
}
inline void Store(float* dst, const Vec& a) { std::memcpy(dst, &a, sizeof(a)); }
template <typename T>
inline void Store(T* dst, const Vec& a) {
  const uint16x8_t low = vcombine_u16(ToBits(a.q0, dst), ToBits(a.q1, dst));
  const uint16x8_t high = vcombine_u16(ToBits(a.q2, dst), ToBits(a.q3, dst));
  std::memcpy(dst, &low, sizeof(low));
  std::memcpy(dst + 8, &high, sizeof(high));
}

// There are no masks: what is less than a vector goes through memory.
template <typename T>
inline Vec LoadPartial(const T* src, int64_t count) {
  if (count >= kLanes) return Load(src);
  T values[kLanes] = {};
  std::memcpy(values, src, count * sizeof(T));
  return Load(values);
}
template <typename T>
inline void StorePartial(T* dst, const Vec& a, int64_t count) {
  if (count >= kLanes) return Store(dst, a);
  T values[kLanes];
  Store(values, a);
  std::memcpy(dst, values, count * sizeof(T));
}

inline float32x4_t Max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

inline Vec Add(const Vec& a, const Vec& b) { return ForQuarters(vaddq_f32, a, b); }
inline Vec Mul(const Vec& a, const Vec& b) { return ForQuarters(vmulq_f32, a, b); }
inline Vec Div(const Vec& a, const Vec& b) { return ForQuarters(vdivq_f32, a, b); }
inline Vec MulAdd(const Vec& a, const Vec& b, const Vec& c) {
  return ForQuarters(vfmaq_f32, c, a, b);
}
inline Vec Max(const Vec& a, const Vec& b) { return ForQuarters(Max4, a, b); }

inline float32x4_t PowerOf2(int32x4_t exponent) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23));
}

// e^a of 4 lanes as in vec_avx2.h.
inline float32x4_t Exp4(float32x4_t a) {
  // Minimum and maximum instructions keep NaN.
  const float32x4_t x = vmaxq_f32(vdupq_n_f32(-104.0f), vminq_f32(vdupq_n_f32(100.0f), a));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504088896341f));
  const float32x4_t high = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
  const float32x4_t r = vfmsq_f32(high, n, vdupq_n_f32(-2.12194440e-4f));
  float32x4_t p = vdupq_n_f32(1.9875691500e-4f);
  p = vfmaq_f32(vdupq_n_f32(1.3981999507e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), p, r);
  p = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), p, r);
  p = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), p, r);
  p = vfmaq_f32(vaddq_f32(r, vdupq_n_f32(1.0f)), p, vmulq_f32(r, r));
  const int32x4_t exponent = vcvtq_s32_f32(n);
  const int32x4_t half = vshrq_n_s32(exponent, 1);
  return vmulq_f32(vmulq_f32(p, PowerOf2(half)), PowerOf2(vsubq_s32(exponent, half)));
}
inline Vec Exp(const Vec& a) { return ForQuarters(Exp4, a); }

inline Vec SelectLessEqual(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
  return ForQuarters(
      [](float32x4_t a4, float32x4_t b4, float32x4_t yes4, float32x4_t no4) {
        return vbslq_f32(vcleq_f32(a4, b4), yes4, no4);
      },
      a, b, yes, no);
}

inline float Sum(const Vec& a) {
  // In the order of the other instruction sets, which vaddvq_f32 does not have.
  const float32x4_t four = vaddq_f32(vaddq_f32(a.q0, a.q2), vaddq_f32(a.q1, a.q3));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline void Transpose4(float32x4_t (&rows)[4]) {
  const float32x4x2_t low = vtrnq_f32(rows[0], rows[1]), high = vtrnq_f32(rows[2], rows[3]);
  for (int i = 0; i < 2; ++i) {
    rows[i] = vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i]));
    rows[i + 2] = vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i]));
  }
}

inline void Transpose(Vec (&rows)[kLanes]) {
  float32x4_t blocks[4][4][4];  // block row, block column, row in the block
  for (int i = 0; i < kLanes; ++i) {
    const float32x4_t quarters[4] = {rows[i].q0, rows[i].q1, rows[i].q2, rows[i].q3};
    for (int c = 0; c < 4; ++c) blocks[i / 4][c][i % 4] = quarters[c];
  }
  for (auto& block_row : blocks) {
    for (auto& block : block_row) Transpose4(block);
  }
  for (int i = 0; i < kLanes; ++i) {
    rows[i] = {blocks[0][i / 4][i % 4], blocks[1][i / 4][i % 4], blocks[2][i / 4][i % 4],
               blocks[3][i / 4][i % 4]};
  }
}

inline Vec Round(const Vec& a, const float*) { return a; }
template <typename T>
inline Vec RoundQuarters(const Vec& a, const T* type) {
  return ForQuarters([type](float32x4_t quarter) { return FromBits(ToBits(quarter, type), type); },
                     a);
}
inline Vec Round(const Vec& a, const bf16_t* type) { return RoundQuarters(a, type); }
inline Vec Round(const Vec& a, const f16_t* type) {
  const Vec low = Set1(-kMaxF16), high = Set1(kMaxF16);
  return RoundQuarters(ForQuarters(vmaxq_f32, ForQuarters(vminq_f32, a, high), low), type);
}

}  // namespace glm::GLM_ISA
