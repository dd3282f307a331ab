// Linear layers on int8 weights for many tokens, where products are the limit and not memory.
//
// The sums of a group of columns go from integer to float registers without passing through memory,
// so there is room for half as many outputs as in linear_int.h, but nothing is stored until all of
// k is done. Both give the same bits.
#pragma once

#include "../kernel_table.h"
#include "linear_int.h"

namespace glm::GLM_ISA {

// Of 32 registers: 12 or 16 integer sums, 12 or 8 float sums, 2 weights and the activations.
constexpr int kManyTokensRows = 2;
constexpr int kManyTokensInBlock[3] = {0, 6, 4};  // by planes
// For fewer tokens larger blocks of outputs are faster.
constexpr int64_t kLeastManyTokens = 33;

// T tokens of P planes times R tile rows over all of k.
template <int P, int R, int T, bool kAffine>
inline void MultiplyManyTokens(const IntBlock& block) {
  const ActivationRows& x = *block.x;
  constexpr int64_t kLineK = 4;
  const int64_t row_stride = x.row_stride, plane_stride = x.plane_stride;
  const int64_t w_stride = block.w_stride;
  const IntElement* values = x.Values(block.first_row);
  const uint8_t* w = block.w;
  Vec sums[T][R];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sums[t][r] = Zero();
  }
  const int64_t group_lines = (kAffine ? x.group_size : kActivationGroup) / kLineK;
  for (int64_t group = 0; group < x.num_groups; ++group) {
    const int64_t left = block.lines - group * group_lines;
    const uint8_t* end = w + (left < group_lines ? left : group_lines) * kIntLineBytes;
    const int32_t* corrections = x.Corrections(group, block.first_row);
    const float* scales = x.Scales(group, block.first_row);
    const uint8_t* zeros = kAffine ? block.zeros + group * block.zeros_step : nullptr;
    IntVec ints[T][P][R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      IntVec row_zeros;
      if constexpr (kAffine) row_zeros = LoadRowZeros<8>(zeros + r * block.zeros_stride);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          if constexpr (kAffine) {
            ints[t][p][r] = TimesZeros(row_zeros, corrections[t * P + p]);
          } else {
            ints[t][p][r] = SetInt(corrections[t * P + p]);
          }
        }
      }
    }
    for (; w < end; w += kIntLineBytes, values += kLineK) {
      Bytes rows[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) rows[r] = LoadBytes(w + r * w_stride);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          const Quad quad = LoadQuad(values + t * row_stride + p * plane_stride);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) ints[t][p][r] = DotBytes(ints[t][p][r], rows[r], quad);
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Vec scale = Set1(scales[t]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const IntVec joined =
            P == 2 ? JoinPlanes(ints[t][0][r], ints[t][P - 1][r]) : ints[t][0][r];
        if constexpr (kAffine) {
          const float* w_scales = block.w_scales + group * block.w_scales_step;
          sums[t][r] = MulAdd(Mul(ToFloats(joined), scale),
                              Load(w_scales + r * block.w_scales_stride), sums[t][r]);
        } else {
          sums[t][r] = MulAdd(ToFloats(joined), scale, sums[t][r]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Store(block.sums + r * block.sums_stride + t * kTileN, sums[t][r]);
    }
  }
}

template <int P, bool kAffine = false>
struct ManyTokensInt {
  static constexpr int64_t kRowMultiple = 1;
  static constexpr bool kInTiles = false;

  static int64_t GroupSize(int64_t) { return kManyTokensRows; }

  explicit ManyTokensInt(const ActivationRows&) {}

  void Multiply(const IntBlock& block, int64_t count, int64_t num_rows) {
    if (count == kManyTokensRows) return MultiplyRows<kManyTokensRows>(block, num_rows);
    for (int64_t r = 0; r < count; ++r) MultiplyRows<1>(RowsFrom(block, r), num_rows);
  }

 private:
  template <int R>
  static void MultiplyRows(IntBlock block, int64_t num_rows) {
    constexpr int kTokens = kManyTokensInBlock[P];
    // From (kTokens - 1)^2 tokens on, blocks of even sizes are full or lack one token.
    static_assert(kLeastManyTokens >= (kTokens - 1) * (kTokens - 1));
    float* sums = block.sums;
    const int64_t num_blocks = CeilDiv(num_rows, kTokens);
    for (int64_t i = 0; i < num_blocks; ++i) {
      block.first_row = num_rows * i / num_blocks;
      block.sums = sums + block.first_row * kTileN;
      const int64_t end = num_rows * (i + 1) / num_blocks;
      if (end - block.first_row == kTokens) {
        MultiplyManyTokens<P, R, kTokens, kAffine>(block);
      } else {
        MultiplyManyTokens<P, R, kTokens - 1, kAffine>(block);
      }
    }
  }
};

inline void LinearIntAnyTokens(const LinearIntArgs& args) {
  if (args.weight_bits != 8 || args.activation_bits == 32 ||
      args.linear.num_rows < kLeastManyTokens) {
    LinearInt(args);
  } else if (IsAffine(args)) {
    LinearIntWith<ManyTokensInt<NumPlanes(16), true>, 8, true>(args);
  } else if (NumPlanes(args.activation_bits) == 2) {
    LinearIntWith<ManyTokensInt<2>, 8>(args);
  } else {
    LinearIntWith<ManyTokensInt<1>, 8>(args);
  }
}

}  // namespace glm::GLM_ISA
