// Products of 64 unsigned with 64 signed bytes, summed in fours by vpdpbusd; dot_int_portable.h
// says what each function must do.
#pragma once

#include <immintrin.h>

#include "../kernel_table.h"
#include "../weight_streams.h"

namespace glm::GLM_ISA {

using IntElement = int8_t;
constexpr int NumPlanes(int activation_bits) { return activation_bits / 8; }
constexpr int32_t kByteZero = 128;

// 16 sums, 4 weights and the activations are 21 of 32 registers. A single token is limited by
// memory: see weight_streams.h.
constexpr int kSingleTokenRows = kMostStreams;
constexpr int kIntBlockTokens = 8, kIntBlockRows = 2;
constexpr int kSumsAtOnce = 8;
// Where sums stay integers over a whole row: 24 of them, 4 weights and the activations.
constexpr int kRowBlockTokens = 6, kRowBlockRows = 4;

using IntVec = __m512i;
using Bytes = __m512i;
using Quad = __m512i;
struct Nibbles {
  __m512i low, high;
};

inline IntVec SetInt(int32_t value) { return _mm512_set1_epi32(value); }
inline IntVec AddInt(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
inline IntVec LoadZeros(const uint8_t* zeros) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
}
// A sum of 128 bytes has 16 bits, and the upper half of each lane of `zeros` is 0.
inline IntVec TimesZeros(IntVec zeros, int32_t negative_sum) {
  return _mm512_madd_epi16(zeros, _mm512_set1_epi32(negative_sum));
}
inline IntVec JoinPlanes(IntVec high, IntVec low) {
  return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}
inline Vec ToFloats(IntVec a) { return _mm512_cvtepi32_ps(a); }
inline IntVec RoundToInt(Vec a) { return _mm512_cvtps_epi32(a); }
inline void StoreInts(int32_t* dst, IntVec a) { _mm512_storeu_si512(dst, a); }
inline IntVec LoadInts(const int32_t* src) { return _mm512_loadu_si512(src); }

template <int kShift, int32_t kMask>
inline Vec WidenBits(const uint8_t* line) {
  const __m512i shifted = _mm512_srli_epi32(_mm512_loadu_si512(line), kShift);
  return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(kMask)));
}
inline Bytes LoadBytes(const uint8_t* src) { return _mm512_loadu_si512(src); }
inline Quad LoadQuad(const IntElement* src) {
  int32_t bits;
  std::memcpy(&bits, src, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
inline Nibbles Split(Bytes w) {
  const __m512i mask = _mm512_set1_epi8(15);
  return {_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi16(w, 4), mask)};
}
// Not _mm512_dpbusd_epi32: for each, GCC 12 moves the sum to another register and back.
inline IntVec DotBytes(IntVec sum, Bytes w, Quad x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}
inline IntVec DotLow(IntVec sum, Nibbles w, Quad x) { return DotBytes(sum, w.low, x); }
inline IntVec DotHigh(IntVec sum, Nibbles w, Quad x) { return DotBytes(sum, w.high, x); }

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

// vpdpbusd wants one side to be signed: here the weights, by InterleaveRows.
inline IntVec DotUnsigned(IntVec sum, Bytes w, Quad x) {
  asm("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}
constexpr int32_t kUnsignedByteZero = 0;

constexpr int64_t kInterleaved = 64;
inline void InterleaveRows(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d,
                           uint8_t* lines, int64_t line_stride) {
  const __m512i sign = _mm512_set1_epi8(-128);
  const __m512i ra = _mm512_xor_si512(_mm512_loadu_si512(a), sign);
  const __m512i rb = _mm512_xor_si512(_mm512_loadu_si512(b), sign);
  const __m512i rc = _mm512_xor_si512(_mm512_loadu_si512(c), sign);
  const __m512i rd = _mm512_xor_si512(_mm512_loadu_si512(d), sign);
  const __m512i ab_low = _mm512_unpacklo_epi8(ra, rb), ab_high = _mm512_unpackhi_epi8(ra, rb);
  const __m512i cd_low = _mm512_unpacklo_epi8(rc, rd), cd_high = _mm512_unpackhi_epi8(rc, rd);
  // Quarter l of the i-th has columns 16 l + 4 i .. 16 l + 4 i + 3.
  const __m512i t0 = _mm512_unpacklo_epi16(ab_low, cd_low);
  const __m512i t1 = _mm512_unpackhi_epi16(ab_low, cd_low);
  const __m512i t2 = _mm512_unpacklo_epi16(ab_high, cd_high);
  const __m512i t3 = _mm512_unpackhi_epi16(ab_high, cd_high);
  const __m512i even01 = _mm512_shuffle_i64x2(t0, t1, 0x88);
  const __m512i odd01 = _mm512_shuffle_i64x2(t0, t1, 0xdd);
  const __m512i even23 = _mm512_shuffle_i64x2(t2, t3, 0x88);
  const __m512i odd23 = _mm512_shuffle_i64x2(t2, t3, 0xdd);
  _mm512_storeu_si512(lines, _mm512_shuffle_i64x2(even01, even23, 0x88));
  _mm512_storeu_si512(lines + line_stride, _mm512_shuffle_i64x2(odd01, odd23, 0x88));
  _mm512_storeu_si512(lines + 2 * line_stride, _mm512_shuffle_i64x2(even01, even23, 0xdd));
  _mm512_storeu_si512(lines + 3 * line_stride, _mm512_shuffle_i64x2(odd01, odd23, 0xdd));
}

}  // namespace glm::GLM_ISA
