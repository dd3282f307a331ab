// Sixteen float lanes as two AVX2 registers; vec_portable.h says what each function must do.
#pragma once

#include <immintrin.h>

namespace glm::GLM_ISA {

constexpr int kLanes = 16;

struct Vec {
  __m256 low, high;
};

// Of 16 registers: 8 to 12 of sums, two of weights, an activation. For 2 tokens 12 of sums, some
// spilled: more tile rows at a time are more streams of memory.
constexpr int kTokenBlock = 6;
constexpr int kTileRowsForTokens[kTokenBlock + 1] = {0, 4, 3, 1, 1, 1, 1};
constexpr int kScoreKeys = 4;
constexpr int kScoreVecs = 1;
constexpr int kManyQueries = 6;
constexpr int kValueQueries = 2;
constexpr int kValueVecs = 2;

// All ones in the first `count` of 8 lanes.
inline __m256i FirstLanes(int64_t count) {
  const int32_t bounded = count < 0 ? 0 : count > 8 ? 8 : static_cast<int32_t>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(bounded),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Asks for kBytes, into the second-level cache; any address will do. Always inlined: some calls of
// it gcc 12 would drop, as it takes them to have no effect.
template <int kBytes>
[[gnu::always_inline]] inline void Prefetch(const void* address) {
  for (int i = 0; i < kBytes; i += 64) {
    _mm_prefetch(static_cast<const char*>(address) + i, _MM_HINT_T1);
  }
}
// The line at `address`, which is read once: into the first-level cache, past the others.
[[gnu::always_inline]] inline void PrefetchOnce(const void* address) {
  _mm_prefetch(static_cast<const char*>(address), _MM_HINT_NTA);
}

inline Vec Set1(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Vec Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }

inline __m256 FromBits(__m128i bits, const bf16_t*) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline __m256 FromBits(__m128i bits, const f16_t*) { return _mm256_cvtph_ps(bits); }

// The rounded upper halves of 8 floats, each in the lower half of its lane.
inline __m256i RoundToUpperHalf(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet_nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet_nan, is_nan);
}
inline __m256i ToBits(const Vec& a, const bf16_t*) {
  const __m256i halves = _mm256_packus_epi32(RoundToUpperHalf(a.low), RoundToUpperHalf(a.high));
  return _mm256_permute4x64_epi64(halves, 0xd8);  // packs work within 128 bits
}
inline __m256i ToBits(const Vec& a, const f16_t*) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(a.high, kNearest), _mm256_cvtps_ph(a.low, kNearest));
}

inline Vec Load(const float* src) { return {_mm256_loadu_ps(src), _mm256_loadu_ps(src + 8)}; }
template <typename T>
inline Vec Load(const T* src) {
  const __m128i* bits = reinterpret_cast<const __m128i*>(src);
  return {FromBits(_mm_loadu_si128(bits), src), FromBits(_mm_loadu_si128(bits + 1), src)};
}
inline Vec LoadEven(const bf16_t* src) {
  const __m256i* pairs = reinterpret_cast<const __m256i*>(src);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(pairs), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(pairs + 1), 16))};
}
inline Vec LoadOdd(const bf16_t* src) {
  const __m256i* pairs = reinterpret_cast<const __m256i*>(src);
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(pairs), upper)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(pairs + 1), upper))};
}
inline void Store(float* dst, const Vec& a) {
  _mm256_storeu_ps(dst, a.low);
  _mm256_storeu_ps(dst + 8, a.high);
}
template <typename T>
inline void Store(T* dst, const Vec& a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), ToBits(a, dst));
}

inline Vec LoadPartial(const float* src, int64_t count) {
  if (count >= kLanes) return Load(src);
  return {_mm256_maskload_ps(src, FirstLanes(count)),
          _mm256_maskload_ps(src + 8, FirstLanes(count - 8))};
}
// Elements of 16 bits have no masks: what is less than a vector goes through memory.
template <typename T>
inline Vec LoadPartial(const T* src, int64_t count) {
  if (count >= kLanes) return Load(src);
  T values[kLanes] = {};
  std::memcpy(values, src, count * sizeof(T));
  return Load(values);
}
inline void StorePartial(float* dst, const Vec& a, int64_t count) {
  if (count >= kLanes) return Store(dst, a);
  _mm256_maskstore_ps(dst, FirstLanes(count), a.low);
  _mm256_maskstore_ps(dst + 8, FirstLanes(count - 8), a.high);
}
template <typename T>
inline void StorePartial(T* dst, const Vec& a, int64_t count) {
  if (count >= kLanes) return Store(dst, a);
  T values[kLanes];
  Store(values, a);
  std::memcpy(dst, values, count * sizeof(T));
}

inline Vec Add(const Vec& a, const Vec& b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Vec Mul(const Vec& a, const Vec& b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Vec Div(const Vec& a, const Vec& b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Vec MulAdd(const Vec& a, const Vec& b, const Vec& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec Max(const Vec& a, const Vec& b) {  // b where one is a NaN
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Vec Min(const Vec& a, const Vec& b) {  // b where one is a NaN
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline __m256 PowerOf2(__m256i exponent) {
  const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

// e^a of 8 lanes as in vec_avx512.h. 2^n is multiplied in two steps, as it may be too small or
// too large for a float of its own.
inline __m256 Exp8(__m256 a) {
  const __m256 x =
      _mm256_max_ps(_mm256_set1_ps(-104.0f), _mm256_min_ps(_mm256_set1_ps(100.0f), a));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 high = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  const __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), high);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256 once = _mm256_mul_ps(p, PowerOf2(half));
  return _mm256_mul_ps(once, PowerOf2(_mm256_sub_epi32(exponent, half)));
}
inline Vec Exp(const Vec& a) { return {Exp8(a.low), Exp8(a.high)}; }

inline Vec SelectLessEqual(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
  return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LE_OQ)),
          _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LE_OQ))};
}

inline float Sum(const Vec& a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline void Transpose8(__m256 (&rows)[8]) {
  __m256 t[8];
  // 2x2 blocks of floats, then of pairs, then of halves.
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      rows[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) rows[i] = t[i];
}

inline void Transpose(Vec (&rows)[kLanes]) {
  __m256 quarters[4][8];  // upper left, upper right, lower left, lower right
  for (int i = 0; i < 8; ++i) {
    quarters[0][i] = rows[i].low;
    quarters[1][i] = rows[i].high;
    quarters[2][i] = rows[i + 8].low;
    quarters[3][i] = rows[i + 8].high;
  }
  for (auto& quarter : quarters) Transpose8(quarter);
  for (int i = 0; i < 8; ++i) {
    rows[i] = {quarters[0][i], quarters[2][i]};
    rows[i + 8] = {quarters[1][i], quarters[3][i]};
  }
}

inline Vec Round(const Vec& a, const float*) { return a; }
inline Vec Round(const Vec& a, const bf16_t*) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(RoundToUpperHalf(a.low), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(RoundToUpperHalf(a.high), 16))};
}
inline Vec Round(const Vec& a, const f16_t*) {
  const Vec limited = Max(Set1(-kMaxF16), Min(Set1(kMaxF16), a));  // keeps NaN
  f16_t values[kLanes];
  Store(values, limited);
  return Load(values);
}

}  // namespace glm::GLM_ISA
