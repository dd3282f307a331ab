// Sums of some tile rows of integer weights times some tokens, by dot products: the products of
// linear_int.h, and the block of work that its other kernels take, too.
#pragma once

#include <cstring>

#include "../kernel_table.h"
#include "../weight_streams.h"
#include "linear_work.h"
#include "quantize_activations.h"

namespace glm::GLM_ISA {

// Columns after which the next block of tokens has its turn: the weights of a block of tile rows
// stay in the first-level cache.
constexpr int64_t kIntBlockK = 256;
// How far ahead weights are fetched where there is one block of tokens: of one tile row at a time
// some bytes, into the first-level cache; of several tile rows so many lines, into the second-level
// cache, while the products take their time.
constexpr int64_t kIntPrefetchBytes = 4096;
constexpr int64_t kIntPrefetchLines = 128;

// Whether a single token takes kSingleTokenRows tile rows at once, each a stream of memory.
inline bool TakesStreams() {
  return kSingleTokenRows > 1 && (kSingleTokenRows < kMostStreams || WeightStreams() > 1);
}

// One line of a tile row: 16 weight rows of 4 columns, or of int4 twice 4.
template <int kBits>
struct LineWeights {
  Bytes bytes;
  void Load(const uint8_t* line) { bytes = LoadBytes(line); }
  IntVec DotFirst(const IntVec& sum, const Quad& x) const { return DotBytes(sum, bytes, x); }
};
template <>
struct LineWeights<4> {
  Nibbles nibbles;
  void Load(const uint8_t* line) { nibbles = Split(LoadBytes(line)); }
  IntVec DotFirst(const IntVec& sum, const Quad& x) const { return DotLow(sum, nibbles, x); }
  IntVec DotSecond(const IntVec& sum, const Quad& x) const { return DotHigh(sum, nibbles, x); }
};

// Some tile rows times some tokens over a range of groups.
struct IntBlock {
  const uint8_t* w;
  int64_t w_stride;        // bytes from one tile row to the next
  const float* w_scales;   // int4: [num_groups][16] of the first tile row
  int64_t w_scales_stride;  // floats from one tile row to the next
  int64_t w_scales_step;    // affine: floats from one group to the next, 0 where there is one
  const uint8_t* zeros;     // affine: as w_scales
  int64_t zeros_stride, zeros_step;
  const ActivationRows* x;
  int64_t first_row;
  int64_t first_group;  // of `x->group_size` columns
  int64_t num_groups;
  int64_t lines;  // of 64 bytes that a tile row has from the first group on
  float* sums;    // [tile rows][num_rows][16], from first_row on
  int64_t sums_stride;
  int64_t ahead;  // bytes from a line to the one that is fetched while it is used
};

// Some lines of a group: R tile rows at w, C operand rows (planes of tokens) at x.
struct GroupLines {
  const uint8_t* w;
  int64_t w_stride;
  int64_t num_lines;
  int64_t ahead;
  const IntElement* x;
  int64_t x_stride;
  const int32_t* corrections;  // [C]
  const uint8_t* zeros;        // affine: [16] of the first tile row
  int64_t zeros_stride;
};

// The zero points of 16 weight rows, as DotBytes takes these.
template <int kBits>
inline IntVec LoadRowZeros(const uint8_t* zeros) {
  const IntVec found = LoadZeros(zeros);
  return kBits == 8 && kByteZero != 128 ? AddInt(found, SetInt(kByteZero - 128)) : found;
}

// sums[i][r] = corrections[i] (* zeros[r]) + x[i] . w[r] over the lines of one group.
template <int kBits, int C, int R, bool kAffine = false>
inline void MultiplyGroup(const GroupLines& group, IntVec* sums) {
  // Few sums wait for one another: each is then split into chains that are added at the end. A
  // group has at least 4 lines.
  constexpr int kSums = R * C;
  constexpr int kChains = 4 * kSums <= kSumsAtOnce ? 4 : 2 * kSums <= kSumsAtOnce ? 2 : 1;
  constexpr int64_t kLineK = kBits == 8 ? 4 : 8;
  const uint8_t* w = group.w;
  const int64_t w_stride = group.w_stride, x_stride = group.x_stride, ahead = group.ahead;
  // One pointer for three rows: an address is a pointer plus 0, 1 or 2 strides.
  const IntElement* x[(C + 2) / 3];
  for (int i = 0; i < C; i += 3) x[i / 3] = group.x + i * x_stride;
  IntVec acc[kChains][C][R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    IntVec zeros;
    if constexpr (kAffine) zeros = LoadRowZeros<kBits>(group.zeros + r * group.zeros_stride);
#pragma GCC unroll 16
    for (int i = 0; i < C; ++i) {
      if constexpr (kAffine) {
        acc[0][i][r] = TimesZeros(zeros, group.corrections[i]);
      } else {
        acc[0][i][r] = SetInt(group.corrections[i]);
      }
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) acc[chain][i][r] = SetInt(0);
    }
  }
  for (int64_t line = 0; line < group.num_lines; line += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      LineWeights<kBits> rows[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const uint8_t* address = w + (line + chain) * kIntLineBytes + r * w_stride;
        rows[r].Load(address);
        if constexpr (R == 1) {
          PrefetchOnce(address + ahead);
        } else {
          Prefetch<kIntLineBytes>(address + ahead);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < C; ++i) {
        const IntElement* values = x[i / 3] + i % 3 * x_stride + (line + chain) * kLineK;
        const Quad first = LoadQuad(values);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[chain][i][r] = rows[r].DotFirst(acc[chain][i][r], first);
        if constexpr (kBits == 4) {
          const Quad second = LoadQuad(values + 4);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            acc[chain][i][r] = rows[r].DotSecond(acc[chain][i][r], second);
          }
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < C; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      IntVec sum = acc[0][i][r];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) sum = AddInt(sum, acc[chain][i][r]);
      sums[i * R + r] = sum;
    }
  }
}

// sums += ints * x_scale (* w_scale, which int8 has one of for all groups unless it is affine).
template <int kBits, bool kAffine = false>
inline void AddScaled(const IntVec& ints, float x_scale, const Vec& w_scale, float* sums) {
  if (kBits == 8 && !kAffine) {
    Store(sums, MulAdd(ToFloats(ints), Set1(x_scale), Load(sums)));
  } else {
    const Vec scaled = Mul(ToFloats(ints), Set1(x_scale));
    Store(sums, MulAdd(scaled, w_scale, Load(sums)));
  }
}

// The same with scales of the weights in memory.
template <int kBits, bool kAffine = false>
inline void AddGroup(const IntVec& ints, float x_scale, const float* w_scales, float* sums) {
  AddScaled<kBits, kAffine>(ints, x_scale, Load(w_scales), sums);
}

// R tile rows times T tokens of P planes.
template <int kBits, int P, int R, int T, bool kAffine>
inline void MultiplyBlock(const IntBlock& block) {
  const ActivationRows& x = *block.x;
  const int64_t group_lines = x.group_size / (kBits == 8 ? 4 : 8);
  for (int64_t g = 0; g < block.num_groups; ++g) {
    const int64_t group = block.first_group + g, lines_left = block.lines - g * group_lines;
    GroupLines lines;
    lines.w = block.w + g * group_lines * kIntLineBytes;
    lines.w_stride = block.w_stride;
    lines.num_lines = lines_left < group_lines ? lines_left : group_lines;
    lines.ahead = block.ahead;
    lines.x = x.Values(block.first_row) + group * x.group_size;
    lines.x_stride = x.plane_stride;
    lines.corrections = x.Corrections(group, block.first_row);
    if constexpr (kAffine) {
      lines.zeros = block.zeros + group * block.zeros_step;
      lines.zeros_stride = block.zeros_stride;
    }
    IntVec ints[T * P * R];
    MultiplyGroup<kBits, T * P, R, kAffine>(lines, ints);
    const float* w_scales = block.w_scales + group * (kAffine ? block.w_scales_step : kTileN);
    const float* x_scales = x.Scales(group, block.first_row);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        IntVec joined = ints[t * P * R + r];
        if (P == 2) joined = JoinPlanes(joined, ints[(t * P + 1) * R + r]);
        AddGroup<kBits, kAffine>(joined, x_scales[t], w_scales + r * block.w_scales_stride,
                                 block.sums + r * block.sums_stride + t * kTileN);
      }
    }
  }
}

// The same for 1 <= num_tokens <= T tokens.
template <int kBits, int P, int R, int T, bool kAffine>
inline void MultiplyTokens(const IntBlock& block, int64_t num_tokens) {
  if constexpr (T > 1) {
    if (num_tokens < T) {
      MultiplyTokens<kBits, P, R, T - 1, kAffine>(block, num_tokens);
      return;
    }
  }
  MultiplyBlock<kBits, P, R, T, kAffine>(block);
}

// R tile rows times all tokens, in blocks of at most T tokens, of even sizes. Where there are
// several, a range of k is done for all of them before the next. `block` names the tile rows; the
// rest is filled in.
template <int kBits, int P, int R, int T, bool kAffine>
inline void MultiplyTileRows(IntBlock block, int64_t num_rows) {
  const int64_t group_lines = block.x->group_size / (kBits == 8 ? 4 : 8);
  const int64_t num_blocks = CeilDiv(num_rows, T), num_groups = block.x->num_groups;
  const bool is_one_stream = R == 1 && num_blocks == 1;
  const int64_t pass = is_one_stream     ? num_groups
                       : num_blocks == 1 ? kIntPrefetchLines / group_lines
                                         : kIntBlockK / block.x->group_size;
  const IntBlock whole = block;
  for (int64_t r = 0; r < R; ++r) {
    std::memset(whole.sums + r * whole.sums_stride, 0, num_rows * kTileN * sizeof(float));
  }
  for (int64_t group = 0; group < num_groups; group += pass) {
    block.first_group = group;
    block.num_groups = num_groups - group < pass ? num_groups - group : pass;
    block.w = whole.w + group * group_lines * kIntLineBytes;
    block.lines = whole.lines - group * group_lines;
    const int64_t next = group + pass < num_groups ? pass : R * num_groups - group;
    for (int64_t i = 0; i < num_blocks; ++i) {
      block.first_row = num_rows * i / num_blocks;
      block.sums = whole.sums + block.first_row * kTileN;
      const int64_t end = num_rows * (i + 1) / num_blocks;
      // The first block of tokens fetches the lines that come after those of the last.
      block.ahead = is_one_stream ? kIntPrefetchBytes
                    : i > 0       ? 0
                                  : next * group_lines * kIntLineBytes;
      MultiplyTokens<kBits, P, R, T, kAffine>(block, end - block.first_row);
    }
  }
}

// `block` from its r-th tile row on.
inline IntBlock RowsFrom(IntBlock block, int64_t r) {
  block.w += r * block.w_stride;
  block.w_scales += r * block.w_scales_stride;
  block.zeros += r * block.zeros_stride;
  block.sums += r * block.sums_stride;
  return block;
}

}  // namespace glm::GLM_ISA
