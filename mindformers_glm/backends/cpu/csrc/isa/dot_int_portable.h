// Integer products as plain loops: runs anywhere, and says what the fast versions must do.
#pragma once

#include <cmath>
#include <cstring>

#include "../kernel_table.h"

namespace glm::GLM_ISA {

// How activations lie in memory: as 16-bit integers in one plane, or as bytes in one or two.
using IntElement = int16_t;
constexpr int NumPlanes(int /*activation_bits*/) { return 1; }
// What stands for zero in the bytes of int8 weights, as DotBytes takes them.
constexpr int32_t kByteZero = 128;

// Tile rows and tokens of one block, also for few tokens. Planes share the tokens among them.
constexpr int kSingleTokenRows = 1;
constexpr int kIntBlockTokens = 2, kIntBlockRows = 1;
// So many sums hide the latency of a product.
constexpr int kSumsAtOnce = 1;
constexpr int kRowBlockTokens = kIntBlockTokens, kRowBlockRows = kIntBlockRows;

struct IntVec {
  int32_t lane[16];
};
struct Bytes {
  uint8_t byte[64];
};
// The activations of 4 columns.
struct Quad {
  int32_t value[4];
};

inline IntVec SetInt(int32_t value) {
  IntVec out;
  for (int n = 0; n < 16; ++n) out.lane[n] = value;
  return out;
}
// Leaves 32 bits as vector units do: from the other end on.
inline IntVec AddInt(const IntVec& a, const IntVec& b) {
  IntVec out;
  for (int n = 0; n < 16; ++n) {
    out.lane[n] = static_cast<int32_t>(static_cast<uint32_t>(a.lane[n]) +
                                       static_cast<uint32_t>(b.lane[n]));
  }
  return out;
}
// A zero point of each lane, and -sum times these, for `negative_sum` of one plane over 128 columns
// at most.
inline IntVec LoadZeros(const uint8_t* zeros) {
  IntVec out;
  for (int n = 0; n < 16; ++n) out.lane[n] = zeros[n];
  return out;
}
inline IntVec TimesZeros(const IntVec& zeros, int32_t negative_sum) {
  IntVec out;
  for (int n = 0; n < 16; ++n) out.lane[n] = zeros.lane[n] * negative_sum;
  return out;
}
// 256 * high + low
inline IntVec JoinPlanes(const IntVec& high, const IntVec& low) {
  IntVec out;
  for (int n = 0; n < 16; ++n) out.lane[n] = high.lane[n] * 256 + low.lane[n];
  return out;
}
inline Vec ToFloats(const IntVec& a) {
  float values[16];
  for (int n = 0; n < 16; ++n) values[n] = static_cast<float>(a.lane[n]);
  return Load(values);
}

inline Bytes LoadBytes(const uint8_t* src) {
  Bytes out;
  std::memcpy(out.byte, src, sizeof(out.byte));
  return out;
}
inline Quad LoadQuad(const IntElement* src) {
  Quad out;
  for (int c = 0; c < 4; ++c) out.value[c] = src[c];
  return out;
}

// kMask of the bits from kShift on of each 4 bytes of a line, as floats.
template <int kShift, int32_t kMask>
inline Vec WidenBits(const uint8_t* line) {
  uint32_t words[16];
  float values[16];
  std::memcpy(words, line, sizeof(words));
  for (int n = 0; n < 16; ++n) {
    values[n] = static_cast<float>(static_cast<int32_t>(words[n] >> kShift) & kMask);
  }
  return Load(values);
}

// sum[n] += w[n][0] x[0] + ... + w[n][3] x[3] for unsigned w.
inline IntVec DotBytes(const IntVec& sum, const Bytes& w, const Quad& x) {
  IntVec out = sum;
  for (int n = 0; n < 16; ++n) {
    for (int c = 0; c < 4; ++c) out.lane[n] += w.byte[4 * n + c] * x.value[c];
  }
  return out;
}
// The same for the 8 columns of a line of int4: four in the lower halves of bytes, four above.
struct Nibbles {
  Bytes low, high;
};
inline Nibbles Split(const Bytes& w) {
  Nibbles out;
  for (int i = 0; i < 64; ++i) {
    out.low.byte[i] = w.byte[i] & 15;
    out.high.byte[i] = w.byte[i] >> 4;
  }
  return out;
}
inline IntVec DotLow(const IntVec& sum, const Nibbles& w, const Quad& x) {
  return DotBytes(sum, w.low, x);
}
inline IntVec DotHigh(const IntVec& sum, const Nibbles& w, const Quad& x) {
  return DotBytes(sum, w.high, x);
}

// To the nearest integer, ties to even.
inline IntVec RoundToInt(const Vec& a) {
  float values[16];
  Store(values, a);
  IntVec out;
  for (int n = 0; n < 16; ++n) out.lane[n] = static_cast<int32_t>(std::lrint(values[n]));
  return out;
}
inline void StoreInts(int32_t* dst, const IntVec& a) { std::memcpy(dst, a.lane, sizeof(a.lane)); }
inline IntVec LoadInts(const int32_t* src) {
  IntVec out;
  std::memcpy(out.lane, src, sizeof(out.lane));
  return out;
}

// Writes quantized activations; `plane_stride` leads from a plane to the next.
template <int64_t kCount = kActivationGroup>
inline void StoreActivations(const int32_t* values, IntElement* out, int /*num_planes*/,
                             int64_t /*plane_stride*/) {
  for (int i = 0; i < kCount; ++i) out[i] = static_cast<IntElement>(values[i]);
}

// The same as DotBytes for activations that are unsigned bytes, and weights of InterleaveRows.
inline IntVec DotUnsigned(const IntVec& sum, const Bytes& w, const Quad& x) {
  return DotBytes(sum, w, x);
}
// What stands for zero in the bytes of weights, as DotUnsigned takes them.
constexpr int32_t kUnsignedByteZero = 128;

// The bytes of four rows as lines of 16 columns with four rows each, kInterleaved columns at once;
// `line_stride` leads from a line to the next.
constexpr int64_t kInterleaved = 16;
inline void InterleaveRows(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d,
                           uint8_t* lines, int64_t /*line_stride*/) {
  for (int i = 0; i < 16; ++i) {
    lines[4 * i] = a[i];
    lines[4 * i + 1] = b[i];
    lines[4 * i + 2] = c[i];
    lines[4 * i + 3] = d[i];
  }
}

}  // namespace glm::GLM_ISA
