// Integer products by vpmaddwd, in 16 bits: vpmaddubsw would saturate. dot_int_portable.h says what
// each function must do.
#pragma once

#include <immintrin.h>

#include "../kernel_table.h"
#include "../weight_streams.h"

namespace glm::GLM_ISA {

// Of every 4 columns the even ones come first: that is how bytes widen to 16 bits without moving.
using IntElement = int16_t;
constexpr int NumPlanes(int /*activation_bits*/) { return 1; }
constexpr int32_t kByteZero = 128;

constexpr int kSingleTokenRows = kMostStreams;
constexpr int kIntBlockTokens = 4, kIntBlockRows = 1;
constexpr int kSumsAtOnce = 4;
constexpr int kRowBlockTokens = kIntBlockTokens, kRowBlockRows = kIntBlockRows;

struct IntVec {
  __m256i low, high;
};
struct Bytes {
  __m256i low, high;
};
using Nibbles = Bytes;
struct Quad {
  __m256i even, odd;
};

inline IntVec SetInt(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline IntVec AddInt(const IntVec& a, const IntVec& b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline IntVec LoadZeros(const uint8_t* zeros) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline IntVec TimesZeros(const IntVec& zeros, int32_t negative_sum) {
  const __m256i sum = _mm256_set1_epi32(negative_sum);
  return {_mm256_mullo_epi32(zeros.low, sum), _mm256_mullo_epi32(zeros.high, sum)};
}
inline IntVec JoinPlanes(const IntVec& high, const IntVec& low) {
  return AddInt({_mm256_slli_epi32(high.low, 8), _mm256_slli_epi32(high.high, 8)}, low);
}
inline Vec ToFloats(const IntVec& a) {
  return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)};
}
inline IntVec RoundToInt(const Vec& a) {
  return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)};
}
inline void StoreInts(int32_t* dst, const IntVec& a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), a.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 8), a.high);
}
inline IntVec LoadInts(const int32_t* src) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(src);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}

template <int kShift, int32_t kMask>
inline Vec WidenBits(const uint8_t* line) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(line);
  const __m256i mask = _mm256_set1_epi32(kMask);
  const __m256i low = _mm256_srli_epi32(_mm256_loadu_si256(halves), kShift);
  const __m256i high = _mm256_srli_epi32(_mm256_loadu_si256(halves + 1), kShift);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(low, mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(high, mask))};
}
inline Bytes LoadBytes(const uint8_t* src) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(src);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline Quad LoadQuad(const IntElement* src) {
  int32_t even, odd;
  std::memcpy(&even, src, sizeof(even));
  std::memcpy(&odd, src + 2, sizeof(odd));
  return {_mm256_set1_epi32(even), _mm256_set1_epi32(odd)};
}
inline Nibbles Split(const Bytes& w) { return w; }

// sum + even . x.even + odd . x.odd, where odd is in the upper bytes.
inline __m256i DotWords(__m256i sum, __m256i even, __m256i odd, const Quad& x) {
  return _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_madd_epi16(even, x.even),
                                                _mm256_madd_epi16(odd, x.odd)));
}
inline __m256i DotBytes8(__m256i sum, __m256i w, const Quad& x) {
  return DotWords(sum, _mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srli_epi16(w, 8), x);
}
inline __m256i DotLow8(__m256i sum, __m256i w, const Quad& x) {
  const __m256i mask = _mm256_set1_epi16(15);
  return DotWords(sum, _mm256_and_si256(w, mask), _mm256_and_si256(_mm256_srli_epi16(w, 8), mask),
                  x);
}
inline __m256i DotHigh8(__m256i sum, __m256i w, const Quad& x) {
  const __m256i mask = _mm256_set1_epi16(15);
  return DotWords(sum, _mm256_and_si256(_mm256_srli_epi16(w, 4), mask), _mm256_srli_epi16(w, 12),
                  x);
}
inline IntVec DotBytes(const IntVec& sum, const Bytes& w, const Quad& x) {
  return {DotBytes8(sum.low, w.low, x), DotBytes8(sum.high, w.high, x)};
}
inline IntVec DotLow(const IntVec& sum, const Nibbles& w, const Quad& x) {
  return {DotLow8(sum.low, w.low, x), DotLow8(sum.high, w.high, x)};
}
inline IntVec DotHigh(const IntVec& sum, const Nibbles& w, const Quad& x) {
  return {DotHigh8(sum.low, w.low, x), DotHigh8(sum.high, w.high, x)};
}

template <int64_t kCount = kActivationGroup>
inline void StoreActivations(const int32_t* values, IntElement* out, int /*num_planes*/,
                             int64_t /*plane_stride*/) {
  for (int i = 0; i < kCount; i += 4) {
    for (int c = 0; c < 4; ++c) {
      out[i + c] = static_cast<IntElement>(values[i + c % 2 * 2 + c / 2]);
    }
  }
}

inline IntVec DotUnsigned(const IntVec& sum, const Bytes& w, const Quad& x) {
  return DotBytes(sum, w, x);
}
constexpr int32_t kUnsignedByteZero = 128;

constexpr int64_t kInterleaved = 16;
inline void InterleaveRows(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d,
                           uint8_t* lines, int64_t /*line_stride*/) {
  const auto load = [](const uint8_t* row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  };
  const __m128i ra = load(a), rb = load(b), rc = load(c), rd = load(d);
  const __m128i ab[2] = {_mm_unpacklo_epi8(ra, rb), _mm_unpackhi_epi8(ra, rb)};
  const __m128i cd[2] = {_mm_unpacklo_epi8(rc, rd), _mm_unpackhi_epi8(rc, rd)};
  __m128i* out = reinterpret_cast<__m128i*>(lines);
  for (int i = 0; i < 2; ++i) {
    _mm_storeu_si128(out + 2 * i, _mm_unpacklo_epi16(ab[i], cd[i]));
    _mm_storeu_si128(out + 2 * i + 1, _mm_unpackhi_epi16(ab[i], cd[i]));
  }
}

}  // namespace glm::GLM_ISA
