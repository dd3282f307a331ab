// Sixteen float lanes as plain loops: runs anywhere, and says what the fast versions must do.
#pragma once

#include <cmath>

#include "../dtype.h"

namespace glm::GLM_ISA {

constexpr int kLanes = 16;

struct Vec {
  float lane[kLanes];
};

// How many sums a compiler can keep in registers: tokens per block of a linear layer, tile rows per
// block for that many tokens (1 to 4); of attention, keys and vectors of queries per block of
// scores, queries per block of weighted values one vector wide, and queries and vectors of another.
constexpr int kTokenBlock = 2;
constexpr int kTileRowsForTokens[kTokenBlock + 1] = {0, 1, 1};
constexpr int kScoreKeys = 2;
constexpr int kScoreVecs = 1;
constexpr int kManyQueries = 16;
constexpr int kValueQueries = 4;
constexpr int kValueVecs = 4;

template <int kBytes>
inline void Prefetch(const void*) {}
// The line at `address`, which is read once: into the first-level cache, past the others.
inline void PrefetchOnce(const void*) {}

inline Vec Set1(float value) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = value;
  return out;
}
inline Vec Zero() { return Set1(0.0f); }

// `src` and `dst` may be unaligned.
template <typename T>
inline Vec Load(const T* src) {
  T values[kLanes];
  std::memcpy(values, src, sizeof(values));
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = ToFloat(values[i]);
  return out;
}
// Elements 0, 2, 4, ... or 1, 3, 5, ... of 32. As 32-bit integers (the first element of a pair is
// the lower half, as on all processors MindSpore runs on), which compilers vectorise.
inline Vec LoadEven(const bf16_t* src) {
  uint32_t pairs[kLanes];
  std::memcpy(pairs, src, sizeof(pairs));
  for (int i = 0; i < kLanes; ++i) pairs[i] <<= 16;
  Vec out;
  std::memcpy(&out, pairs, sizeof(out));
  return out;
}
inline Vec LoadOdd(const bf16_t* src) {
  uint32_t pairs[kLanes];
  std::memcpy(pairs, src, sizeof(pairs));
  for (int i = 0; i < kLanes; ++i) pairs[i] &= 0xffff0000u;
  Vec out;
  std::memcpy(&out, pairs, sizeof(out));
  return out;
}
template <typename T>
inline void Store(T* dst, const Vec& a) {
  T values[kLanes];
  for (int i = 0; i < kLanes; ++i) FromFloat(a.lane[i], &values[i]);
  std::memcpy(dst, values, sizeof(values));
}

// The first `count` lanes, 0 <= count <= 16; the others are zero, or not written.
template <typename T>
inline Vec LoadPartial(const T* src, int64_t count) {
  T values[kLanes] = {};
  std::memcpy(values, src, count * sizeof(T));
  return Load(values);
}
template <typename T>
inline void StorePartial(T* dst, const Vec& a, int64_t count) {
  T values[kLanes];
  Store(values, a);
  std::memcpy(dst, values, count * sizeof(T));
}

inline Vec Add(const Vec& a, const Vec& b) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] + b.lane[i];
  return out;
}
inline Vec Mul(const Vec& a, const Vec& b) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] * b.lane[i];
  return out;
}
inline Vec Div(const Vec& a, const Vec& b) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] / b.lane[i];
  return out;
}
// a * b + c
inline Vec MulAdd(const Vec& a, const Vec& b, const Vec& c) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
  return out;
}
// a where a > b, else b: a NaN in b stays.
inline Vec Max(const Vec& a, const Vec& b) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return out;
}
inline Vec Exp(const Vec& a) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = std::exp(a.lane[i]);
  return out;
}
// Lane by lane, `yes` where a <= b, else `no`.
inline Vec SelectLessEqual(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] <= b.lane[i] ? yes.lane[i] : no.lane[i];
  return out;
}

inline float Sum(const Vec& a) {
  float part[8];
  for (int i = 0; i < 8; ++i) part[i] = a.lane[i] + a.lane[i + 8];
  for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
  for (int i = 0; i < 2; ++i) part[i] += part[i + 2];
  return part[0] + part[1];
}

// rows[i].lane[j] <-> rows[j].lane[i]
inline void Transpose(Vec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float swapped = rows[i].lane[j];
      rows[i].lane[j] = rows[j].lane[i];
      rows[j].lane[i] = swapped;
    }
  }
}

// What products see of an activation: rounded to T. float16 saturates instead of overflowing.
inline Vec Round(const Vec& a, const float*) { return a; }
inline Vec Round(const Vec& a, const bf16_t*) {
  bf16_t values[kLanes];
  Store(values, a);
  return Load(values);
}
inline Vec Round(const Vec& a, const f16_t*) {
  f16_t values[kLanes];
  Vec limited;
  for (int i = 0; i < kLanes; ++i) {
    const float low = a.lane[i] < -kMaxF16 ? -kMaxF16 : a.lane[i];
    limited.lane[i] = low > kMaxF16 ? kMaxF16 : low;
  }
  Store(values, limited);
  return Load(values);
}

}  // namespace glm::GLM_ISA
