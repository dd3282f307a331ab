// Linear layers on integer weights: y = x . W^T with activations rounded to 8 or 16 bits.
//
// A group of a row's activations has one scale, the weights of the group another (int8: of the whole
// row). Products within a group are integers and exact; the groups' sums are scaled and added in
// float32, in ascending order of k. A row's result therefore does not depend on what else is in the
// batch.
//
// `kAffine`: each group of weights has a zero point besides its scale, also of int8. The sum of a
// group's activations is known already, so zero points are one product of each group.
#pragma once

#include <omp.h>

#include <cstring>

#include "../kernel_table.h"
#include "../scratch.h"
#include "linear.h"
#include "linear_int_float.h"
#include "quantize_activations.h"
#include "quantize_rows.h"

namespace glm::GLM_ISA {

// Columns after which the next block of tokens has its turn: the weights of a block of tile rows
// stay in the first-level cache.
constexpr int64_t kIntBlockK = 256;
// How far ahead weights are fetched where there is one block of tokens: of one tile row at a time
// some bytes, into the first-level cache; of several tile rows so many lines, into the second-level
// cache, while the products take their time.
constexpr int64_t kIntPrefetchBytes = 4096;
constexpr int64_t kIntPrefetchLines = 128;

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

// sums += ints * x_scale (* w_scales, which int8 has one of for all groups unless it is affine).
template <int kBits, bool kAffine = false>
inline void AddGroup(const IntVec& ints, float x_scale, const float* w_scales, float* sums) {
  if (kBits == 8 && !kAffine) {
    Store(sums, MulAdd(ToFloats(ints), Set1(x_scale), Load(sums)));
  } else {
    const Vec scaled = Mul(ToFloats(ints), Set1(x_scale));
    Store(sums, MulAdd(scaled, Load(w_scales), Load(sums)));
  }
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

// The scale of each int8 weight row.
inline void ScaleSums(float* sums, int64_t num_rows, const float* w_scales) {
  const Vec scale = Load(w_scales);
  for (int64_t row = 0; row < num_rows; ++row) {
    Store(sums + row * kTileN, Mul(Load(sums + row * kTileN), scale));
  }
}

// The scale of each row of activations, where one holds for all of its groups.
inline void ScaleTokens(float* sums, int64_t num_rows, const float* row_factors) {
  for (int64_t row = 0; row < num_rows; ++row) {
    Store(sums + row * kTileN, Mul(Load(sums + row * kTileN), Set1(row_factors[row])));
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

// Sums of `count` tile rows and all tokens, by dot products.
template <int kBits, int P, bool kAffine = false>
struct DotInt {
  static constexpr int64_t kRowMultiple = 1;  // rows that sums have room for
  static constexpr bool kInTiles = false;     // activations, see ActivationRows
  static constexpr int kTokens = kIntBlockTokens / P;

  static int64_t GroupSize(int64_t) { return 4; }  // tile rows at once

  explicit DotInt(const ActivationRows&) {}

  // Inlined by gcc 12 into LinearIntWith it is 6 % slower, and MindSpore between the operators too.
  __attribute__((noinline)) void Multiply(const IntBlock& block, int64_t count, int64_t num_rows) {
    int64_t r = 0;
    if (num_rows > kFewTokens) {
      for (; r + kIntBlockRows <= count; r += kIntBlockRows) {
        MultiplyTileRows<kBits, P, kIntBlockRows, kTokens, kAffine>(RowsFrom(block, r), num_rows);
      }
    } else {
      for (; r + kFewTokensRows <= count; r += kFewTokensRows) {
        MultiplyTileRows<kBits, P, kFewTokensRows, kFewTokens, kAffine>(RowsFrom(block, r),
                                                                        num_rows);
      }
    }
    for (; r < count; ++r) {
      MultiplyTileRows<kBits, P, 1, kTokens, kAffine>(RowsFrom(block, r), num_rows);
    }
  }
};

// Zero points of symmetric int8, wherever a group's are looked for.
alignas(64) constexpr uint8_t kMiddleOfBytes[kTileN] = {128, 128, 128, 128, 128, 128, 128, 128,
                                                        128, 128, 128, 128, 128, 128, 128, 128};

template <class Kernel, int kBits, bool kAffine = false>
inline void LinearIntWith(const LinearIntArgs& args) {
  static thread_local Scratch sum_scratch, range_scratch, float_scratch, factor_scratch;
  static thread_local ActivationRows x;
  const LinearArgs& linear = args.linear;
  const int64_t rows_per_unit = linear.is_gated ? 2 : 1;  // tile rows that belong together
  const int64_t num_units = linear.num_tiles / rows_per_unit;
  const int64_t tiles_k = CeilDiv(linear.k, IntTileK(kBits));
  const int64_t row_blocks = CeilDiv(linear.num_rows, Kernel::kRowMultiple);
  const int64_t sums_stride = row_blocks * Kernel::kRowMultiple * kTileN;
  const int num_threads = NumThreads(linear);
  const int64_t group = Kernel::GroupSize(linear.num_tiles / num_threads);
  const bool has_groups = args.group_size > 0;
  // Where zero points differ, the activations' negative sums are kept as they are.
  x.Reserve(linear, args.activation_bits, has_groups ? args.group_size : kActivationGroup,
            kAffine ? 1 : kBits == 8 ? kByteZero : 8, sums_stride / kTileN, Kernel::kInTiles);
  x.order = args.order;
  float* all_sums = sum_scratch.Reserve<float>(num_threads * group * sums_stride);
  const bool has_tokens = args.activation_scale == ActivationScale::kToken;
  const int64_t padded_k = CeilDiv(linear.k, kActivationGroup) * kActivationGroup;
  float* floats = float_scratch.Reserve<float>(has_tokens ? num_threads * padded_k : 0);
  float* factors = factor_scratch.Reserve<float>(has_tokens ? linear.num_rows : 0);
  const ActivationRows* rows = &x;
  const WorkRanges ranges(range_scratch, num_threads, [&](int64_t thread) {
    return FirstUnit(num_units, thread, num_threads) * rows_per_unit;
  });

#pragma omp parallel num_threads(num_threads)
  {
    const int64_t thread = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < linear.num_rows; ++row) {
      if (has_tokens) {
        QuantizeToken(*rows, args, row, floats + thread * padded_k, factors);
      } else {
        rows->Quantize(linear, row);
      }
    }

    Kernel kernel(*rows);
    IntBlock block{};
    block.w_stride = tiles_k * kIntTileBytes;
    block.w_scales_stride = has_groups ? rows->num_groups * kTileN : kTileN;
    block.w_scales_step = has_groups ? kTileN : 0;
    block.zeros = kMiddleOfBytes;
    if (args.zeros != nullptr) {
      block.zeros_stride = block.w_scales_stride;
      block.zeros_step = block.w_scales_step;
    }
    block.x = rows;
    block.lines = block.w_stride / kIntLineBytes;
    block.sums_stride = sums_stride;
    block.sums = all_sums + thread * group * sums_stride;
    for (;;) {
      const auto part = ranges.Take(thread, group);
      if (part.begin == part.end) break;
      for (int64_t first = part.begin; first < part.end; first += group) {
        const int64_t count = std::min(part.end - first, group);
        block.w = static_cast<const uint8_t*>(linear.tiles) + first * block.w_stride;
        block.w_scales = args.scales + first * block.w_scales_stride;
        if (args.zeros != nullptr) block.zeros = args.zeros + first * block.zeros_stride;
        kernel.Multiply(block, count, linear.num_rows);
        for (int64_t r = 0; r < count; r += rows_per_unit) {
          float* sums = block.sums + r * sums_stride;
          if (kBits == 8 && !kAffine) {
            for (int64_t i = 0; i < rows_per_unit; ++i) {
              ScaleSums(sums + i * sums_stride, linear.num_rows,
                        block.w_scales + (r + i) * kTileN);
            }
          }
          for (int64_t i = 0; has_tokens && i < rows_per_unit; ++i) {
            ScaleTokens(sums + i * sums_stride, linear.num_rows, factors);
          }
          WriteOutputs(linear, (first + r) / rows_per_unit * kTileN, sums,
                       linear.is_gated ? sums + sums_stride : nullptr);
        }
      }
    }
  }
}

inline bool IsAffine(const LinearIntArgs& args) {
  return args.zeros != nullptr || (args.weight_bits == 8 && args.group_size > 0);
}

inline void LinearIntAffine(const LinearIntArgs& args) {
  constexpr int kPlanes = NumPlanes(16);
  args.weight_bits == 8 ? LinearIntWith<DotInt<8, kPlanes, true>, 8, true>(args)
                        : LinearIntWith<DotInt<4, kPlanes, true>, 4, true>(args);
}

inline void LinearInt(const LinearIntArgs& args) {
  if (args.activation_bits == 32) return LinearIntFloat(args);
  if (IsAffine(args)) return LinearIntAffine(args);
  const bool has_planes = NumPlanes(args.activation_bits) == 2;
  if (args.weight_bits == 8) {
    has_planes ? LinearIntWith<DotInt<8, 2>, 8>(args) : LinearIntWith<DotInt<8, 1>, 8>(args);
  } else {
    has_planes ? LinearIntWith<DotInt<4, 2>, 4>(args) : LinearIntWith<DotInt<4, 1>, 4>(args);
  }
}

}  // namespace glm::GLM_ISA
