// Sixteen float lanes as one AVX-512 register; vec_portable.h says what each function must do.
#pragma once

#include <immintrin.h>

namespace glm::GLM_ISA {

constexpr int kLanes = 16;

using Vec = __m512;

// Of 32 registers: up to 24 sums, a weight vector for each tile row, an activation.
constexpr int kTokenBlock = 8;
constexpr int kTileRowsForTokens[kTokenBlock + 1] = {0, 4, 4, 4, 4, 4, 4, 3, 3};
constexpr int kScoreKeys = 8;
constexpr int kScoreVecs = 2;
constexpr int kManyQueries = 16;
constexpr int kValueQueries = 4;
constexpr int kValueVecs = 4;

inline __mmask16 FirstLanes(int64_t count) {
  return count <= 0 ? 0 : count >= kLanes ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

// Asks for kBytes, into the second-level cache; any address will do. Always inlined: some calls of
// it gcc 12 would drop, as it takes them to have no effect.
template <int kBytes>
[[gnu::always_inline]] inline void Prefetch(const void* address) {
  for (int i = 0; i < kBytes; i += 64) {
    _mm_prefetch(static_cast<const char*>(address) + i, _MM_HINT_T1);
  }
}
// The line at `address`, which is read once: into the first-level cache, past the others, where it
// would take the place of what is needed again.
[[gnu::always_inline]] inline void PrefetchOnce(const void* address) {
  _mm_prefetch(static_cast<const char*>(address), _MM_HINT_NTA);
}

inline Vec Set1(float value) { return _mm512_set1_ps(value); }
inline Vec Zero() { return _mm512_setzero_ps(); }

inline Vec FromBits(__m256i bits, const bf16_t*) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec FromBits(__m256i bits, const f16_t*) { return _mm512_cvtph_ps(bits); }

inline __m256i ToBits(Vec a, const bf16_t*) {
  // Not vcvtneps2bf16: it takes subnormal numbers for zero.
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_srli_epi32(sum, 16);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}
inline __m256i ToBits(Vec a, const f16_t*) {
  return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Vec Load(const float* src) { return _mm512_loadu_ps(src); }
template <typename T>
inline Vec Load(const T* src) {
  return FromBits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)), src);
}
inline Vec LoadEven(const bf16_t* src) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(src), 16));
}
inline Vec LoadOdd(const bf16_t* src) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(src), upper));
}
inline void Store(float* dst, Vec a) { _mm512_storeu_ps(dst, a); }
template <typename T>
inline void Store(T* dst, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), ToBits(a, dst));
}

inline Vec LoadPartial(const float* src, int64_t count) {
  return _mm512_maskz_loadu_ps(FirstLanes(count), src);
}
template <typename T>
inline Vec LoadPartial(const T* src, int64_t count) {
  if (count >= kLanes) return Load(src);  // masks of 16-bit elements are slow
  return FromBits(_mm256_maskz_loadu_epi16(FirstLanes(count), src), src);
}
inline void StorePartial(float* dst, Vec a, int64_t count) {
  _mm512_mask_storeu_ps(dst, FirstLanes(count), a);
}
template <typename T>
inline void StorePartial(T* dst, Vec a, int64_t count) {
  _mm256_mask_storeu_epi16(dst, FirstLanes(count), ToBits(a, dst));
}

inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec MulAdd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where one is a NaN

// e^a within 2 units in the last place: argument reduction and polynomial of Cephes' expf.
inline Vec Exp(Vec a) {
  // Beyond these bounds the result is 0 or infinity anyway; the operand order keeps NaN.
  const Vec x = _mm512_max_ps(Set1(-104.0f), _mm512_min_ps(Set1(100.0f), a));
  const Vec n = _mm512_roundscale_ps(Mul(x, Set1(1.44269504088896341f)), 0);
  const Vec high = _mm512_fnmadd_ps(n, Set1(0.693359375f), x);
  const Vec r = _mm512_fnmadd_ps(n, Set1(-2.12194440e-4f), high);
  Vec p = Set1(1.9875691500e-4f);
  p = MulAdd(p, r, Set1(1.3981999507e-3f));
  p = MulAdd(p, r, Set1(8.3334519073e-3f));
  p = MulAdd(p, r, Set1(4.1665795894e-2f));
  p = MulAdd(p, r, Set1(1.6666665459e-1f));
  p = MulAdd(p, r, Set1(5.0000001201e-1f));
  p = MulAdd(p, Mul(r, r), Add(r, Set1(1.0f)));
  return _mm512_scalef_ps(p, n);
}

inline Vec SelectLessEqual(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), no, yes);
}

inline float Sum(Vec a) { return _mm512_reduce_add_ps(a); }

inline void Transpose(Vec (&rows)[kLanes]) {
  Vec t[kLanes];
  // 2x2 blocks of floats, then of pairs, then of quarters (twice).
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  // rows[4 g + c] holds, in quarter q, column 4 q + c of rows 4 g .. 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    t[c] = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0x88);
    t[4 + c] = _mm512_shuffle_f32x4(rows[c], rows[4 + c], 0xdd);
    t[8 + c] = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0x88);
    t[12 + c] = _mm512_shuffle_f32x4(rows[8 + c], rows[12 + c], 0xdd);
  }
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0x88);
    rows[4 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(t[c], t[8 + c], 0xdd);
    rows[12 + c] = _mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xdd);
  }
}

inline Vec Round(Vec a, const float*) { return a; }
inline Vec Round(Vec a, const bf16_t* type) { return FromBits(ToBits(a, type), type); }
inline Vec Round(Vec a, const f16_t* type) {
  const Vec limit = Set1(kMaxF16);
  const Vec limited = _mm512_max_ps(Set1(-kMaxF16), _mm512_min_ps(limit, a));  // keeps NaN
  return FromBits(ToBits(limited, type), type);
}

}  // namespace glm::GLM_ISA
