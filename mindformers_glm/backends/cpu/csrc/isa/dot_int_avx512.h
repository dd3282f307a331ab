// Products of 64 unsigned with 64 signed bytes, summed in fours by vpdpbusd; dot_int_portable.h
// says what each function must do.
#pragma once

#include <immintrin.h>

#include "../kernel_table.h"

namespace glm::GLM_ISA {

using IntElement = int8_t;
constexpr int NumPlanes(int activation_bits) { return activation_bits / 8; }
constexpr int32_t kByteZero = 128;

// 16 sums, 4 weights and the activations are 21 of 32 registers. A single token is limited by
// memory, which one stream of weights uses best.
constexpr int kFewTokens = 1, kFewTokensRows = 1;
constexpr int kIntBlockTokens = 8, kIntBlockRows = 2;
constexpr int kSumsAtOnce = 8;

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

inline void StoreActivations(const int32_t* values, IntElement* out, int num_planes,
                             int64_t plane_stride) {
  for (int i = 0; i < kActivationGroup; ++i) {
    const int8_t low = static_cast<int8_t>(values[i]);
    if (num_planes == 1) {
      out[i] = low;
    } else {
      out[i] = static_cast<int8_t>((values[i] - low) >> 8);
      out[plane_stride + i] = low;
    }
  }
}

}  // namespace glm::GLM_ISA
