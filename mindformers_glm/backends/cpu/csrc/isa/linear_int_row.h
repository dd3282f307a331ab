// Linear layers on int8 weights whose sums stay integers over a whole row, as a card's do.
//
//   a row with a scale of its own:  y = float(sum) * (weight scale * row scale)
//   a row with the given scale:     y = float(sum + quant_bias) * deq_scale
//
// Sums of integers are exact, in whatever order, and what follows is element by element: so all
// instruction sets give the same bits, and a row's result does not depend on what else is in the
// batch.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "../kernel_table.h"
#include "../scratch.h"
#include "linear_int.h"
#include "quantize_rows.h"

namespace glm::GLM_ISA {

// Lines of a tile row after which the next block of tokens has its turn, where there are several:
// 2048 columns of some tile rows and of a block of tokens stay in the second-level cache.
constexpr int64_t kRowPassLines = 512;

// Quantized activations of all rows.
struct ByteRows {
  Scratch value_scratch, factor_scratch, correction_scratch, float_scratch;
  IntElement* values = nullptr;    // [rows][columns], filled up with zeros to groups of 128
  float* factors = nullptr;        // [rows], see RowScale
  int32_t* corrections = nullptr;  // [rows]: -zero point of the weights * sum of the row
  float* floats = nullptr;         // [threads][columns]
  int64_t stride = 0;
  int64_t floats_stride = 0;

  void Reserve(const LinearArgs& args, int64_t row_room, int num_threads) {
    constexpr int64_t kLine = 64 / sizeof(IntElement);
    floats_stride = CeilDiv(args.k, kActivationGroup) * kActivationGroup;
    stride = (floats_stride / kLine | 1) * kLine;  // an odd number of cache lines
    values = value_scratch.Reserve<IntElement>(row_room * stride);
    factors = factor_scratch.Reserve<float>(args.num_rows);
    corrections = correction_scratch.Reserve<int32_t>(args.num_rows);
    floats = float_scratch.Reserve<float>(num_threads * floats_stride);
  }

  const IntElement* Values(int64_t row) const { return values + row * stride; }

  void Quantize(const LinearIntArgs& args, int64_t row, int64_t thread) const {
    const LinearArgs& linear = args.linear;
    float* columns = floats + thread * floats_stride;
    const RowScale scale = ScaleOfRow(args, row, CopyRow(linear, row, columns));
    int32_t sum = 0;
    for (int64_t begin = 0; begin < linear.k; begin += kActivationGroup) {
      alignas(64) int32_t integers[kActivationGroup];
      QuantizeColumns(scale, columns + begin, begin, linear.k, integers);
      for (int64_t i = 0; i < kActivationGroup; ++i) sum += integers[i];
      StoreActivations(integers, values + row * stride + begin, 1, 0);
    }
    factors[row] = scale.factor;
    corrections[row] = -kByteZero * sum;
  }
};

// Some tile rows times some tokens over a range of lines.
struct RowBlock {
  const uint8_t* w;
  int64_t w_stride;  // bytes from one tile row to the next
  const IntElement* x;
  int64_t x_stride;
  int64_t num_lines;  // a multiple of 16
  int64_t ahead;      // bytes from a line to the one that is fetched while it is used
  int32_t* sums;      // [tile rows][rows][16], from the first token on
  int64_t sums_stride;
  bool is_first;  // sums are set, not added to
};

// R tile rows times T tokens.
template <int R, int T>
inline void MultiplyRowBlock(const RowBlock& block) {
  // Few sums wait for one another: each is then split into chains that are added at the end.
  constexpr int kSums = R * T;
  constexpr int kChains = 4 * kSums <= kSumsAtOnce ? 4 : 2 * kSums <= kSumsAtOnce ? 2 : 1;
  constexpr int64_t kLineK = 4;
  const uint8_t* w = block.w;
  const int64_t w_stride = block.w_stride, x_stride = block.x_stride, ahead = block.ahead;
  // One pointer for three tokens: an address is a pointer plus 0, 1 or 2 strides.
  const IntElement* x[(T + 2) / 3];
  for (int t = 0; t < T; t += 3) x[t / 3] = block.x + t * x_stride;
  IntVec acc[kChains][T][R];
#pragma GCC unroll 4
  for (int chain = 0; chain < kChains; ++chain) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[chain][t][r] = SetInt(0);
    }
  }
  for (int64_t line = 0; line < block.num_lines; line += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      Bytes rows[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const uint8_t* address = w + (line + chain) * kIntLineBytes + r * w_stride;
        rows[r] = LoadBytes(address);
        if constexpr (R == 1) {
          PrefetchOnce(address + ahead);
        } else {
          Prefetch<kIntLineBytes>(address + ahead);
        }
      }
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const Quad quad = LoadQuad(x[t / 3] + t % 3 * x_stride + (line + chain) * kLineK);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[chain][t][r] = DotBytes(acc[chain][t][r], rows[r], quad);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      IntVec sum = acc[0][t][r];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) sum = AddInt(sum, acc[chain][t][r]);
      int32_t* place = block.sums + r * block.sums_stride + t * kTileN;
      StoreInts(place, block.is_first ? sum : AddInt(LoadInts(place), sum));
    }
  }
}

// The same for 1 <= num_tokens <= T tokens.
template <int R, int T>
inline void MultiplyRowTokens(const RowBlock& block, int64_t num_tokens) {
  if constexpr (T > 1) {
    if (num_tokens < T) return MultiplyRowTokens<R, T - 1>(block, num_tokens);
  }
  MultiplyRowBlock<R, T>(block);
}

// R tile rows times all tokens, in blocks of at most T tokens, of even sizes. Where there are
// several, a range of k is done for all of them before the next. `whole` names the tile rows and
// all of their lines.
template <int R, int T>
inline void MultiplyRowTiles(const RowBlock& whole, int64_t num_rows) {
  const int64_t num_blocks = CeilDiv(num_rows, T), lines = whole.num_lines;
  const bool is_one_stream = R == 1 && num_blocks == 1;
  for (int64_t r = 0; lines == 0 && r < R; ++r) {  // no columns: all that is left is a bias
    std::memset(whole.sums + r * whole.sums_stride, 0, num_rows * kTileN * sizeof(int32_t));
  }
  const int64_t pass = is_one_stream ? lines : num_blocks == 1 ? kIntPrefetchLines : kRowPassLines;
  for (int64_t line = 0; line < lines; line += pass) {
    RowBlock block = whole;
    block.w += line * kIntLineBytes;
    block.num_lines = std::min(lines - line, pass);
    block.is_first = line == 0;
    const int64_t next = line + pass < lines ? pass : R * lines - line;
    for (int64_t i = 0; i < num_blocks; ++i) {
      const int64_t begin = num_rows * i / num_blocks, end = num_rows * (i + 1) / num_blocks;
      block.x = whole.x + begin * whole.x_stride + line * 4;
      block.sums = whole.sums + begin * kTileN;
      // The first block of tokens fetches the lines that come after those of the last.
      block.ahead = is_one_stream ? kIntPrefetchBytes : i > 0 ? 0 : next * kIntLineBytes;
      MultiplyRowTokens<R, T>(block, end - begin);
    }
  }
}

// Sums of `count` tile rows and all tokens, by dot products.
struct DotRows {
  static constexpr int64_t kRowMultiple = 1;  // rows that values and sums have room for
  static constexpr int64_t kGroupSize = 4;    // tile rows at once

  __attribute__((noinline)) void Multiply(const RowBlock& block, int64_t count, int64_t num_rows) {
    int64_t r = 0;
    if (num_rows == 1) {
      if (TakesStreams()) r = Run<kSingleTokenRows, 1>(block, r, count, num_rows);
    } else if (num_rows <= kIntBlockTokens) {  // one block: weights are read as they come
      r = Run<kIntBlockRows, kIntBlockTokens>(block, r, count, num_rows);
    } else {
      r = Run<kRowBlockRows, kRowBlockTokens>(block, r, count, num_rows);
      if constexpr (kRowBlockRows > 2) r = Run<2, kRowBlockTokens>(block, r, count, num_rows);
    }
    Run<1, kIntBlockTokens>(block, r, count, num_rows);
  }

 private:
  template <int R, int T>
  static int64_t Run(const RowBlock& whole, int64_t r, int64_t count, int64_t num_rows) {
    for (; r + R <= count; r += R) {
      RowBlock block = whole;
      block.w += r * block.w_stride;
      block.sums += r * block.sums_stride;
      MultiplyRowTiles<R, T>(block, num_rows);
    }
    return r;
  }
};

// The results of one tile row in place of its sums; n_begin is its first output column, for the
// bias. What of the float bias is in quant_bias already is not among the operands.
inline void ScaleRowSums(const LinearIntArgs& args, const ByteRows& x, int64_t tile,
                         int64_t n_begin, float* sums) {
  const LinearArgs& linear = args.linear;
  const bool has_given = args.deq_scales != nullptr;
  const Vec own_scale = args.scales != nullptr ? Load(args.scales + tile * kTileN) : Zero();
  const Vec given_scale = has_given ? Load(args.deq_scales + tile * kTileN) : Zero();
  const IntVec given_bias = has_given ? LoadInts(args.quant_bias + tile * kTileN) : SetInt(0);
  const bool has_bias = linear.bias != nullptr;
  const int64_t count = std::min(linear.n - n_begin, kTileN);
  const Vec bias = has_bias ? LoadPartial(linear.bias + n_begin, count) : Zero();
  for (int64_t row = 0; row < linear.num_rows; ++row) {
    float* place = sums + row * kTileN;
    IntVec sum = AddInt(LoadInts(reinterpret_cast<const int32_t*>(place)),
                        SetInt(x.corrections[row]));
    const bool is_token = IsTokenRow(args, row);
    if (!is_token) sum = AddInt(sum, given_bias);
    const Vec scale = Mul(is_token ? own_scale : given_scale, Set1(x.factors[row]));
    Vec v = Mul(ToFloats(sum), scale);
    if (has_bias && (is_token || args.activation_scale == ActivationScale::kStatic)) {
      v = Add(v, bias);
    }
    Store(place, v);
  }
}

template <class Kernel>
inline void LinearIntRowWith(const LinearIntArgs& args) {
  static thread_local Scratch sum_scratch, range_scratch;
  static thread_local ByteRows x;
  const LinearArgs& linear = args.linear;
  const int64_t rows_per_unit = linear.is_gated ? 2 : 1;  // tile rows that belong together
  const int64_t num_units = linear.num_tiles / rows_per_unit;
  const int64_t tile_row_bytes = CeilDiv(linear.k, IntTileK(8)) * kIntTileBytes;
  const int64_t row_room = CeilDiv(linear.num_rows, Kernel::kRowMultiple) * Kernel::kRowMultiple;
  const int64_t sums_stride = row_room * kTileN;
  const int num_threads = NumThreads(linear);
  x.Reserve(linear, row_room, num_threads);
  float* all_sums = sum_scratch.Reserve<float>(num_threads * Kernel::kGroupSize * sums_stride);
  const ByteRows* rows = &x;
  const WorkRanges ranges(range_scratch, num_threads, [&](int64_t thread) {
    return FirstUnit(num_units, thread, num_threads) * rows_per_unit;
  });
  LinearArgs without_bias = linear;
  without_bias.bias = nullptr;

#pragma omp parallel num_threads(num_threads)
  {
    const int64_t thread = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < linear.num_rows; ++row) rows->Quantize(args, row, thread);

    Kernel kernel;
    float* sums = all_sums + thread * Kernel::kGroupSize * sums_stride;
    RowBlock block{};
    block.w_stride = tile_row_bytes;
    block.x = rows->values;
    block.x_stride = rows->stride;
    block.num_lines = tile_row_bytes / kIntLineBytes;
    block.sums = reinterpret_cast<int32_t*>(sums);
    block.sums_stride = sums_stride;
    for (;;) {
      const auto part = ranges.Take(thread, Kernel::kGroupSize);
      if (part.begin == part.end) break;
      for (int64_t first = part.begin; first < part.end; first += Kernel::kGroupSize) {
        const int64_t count = std::min(part.end - first, Kernel::kGroupSize);
        block.w = static_cast<const uint8_t*>(linear.tiles) + first * tile_row_bytes;
        kernel.Multiply(block, count, linear.num_rows);
        for (int64_t r = 0; r < count; r += rows_per_unit) {
          float* outputs = sums + r * sums_stride;
          const int64_t n_begin = (first + r) / rows_per_unit * kTileN;
          for (int64_t i = 0; i < rows_per_unit; ++i) {
            ScaleRowSums(args, *rows, first + r + i, n_begin, outputs + i * sums_stride);
          }
          WriteOutputs(without_bias, n_begin, outputs,
                       linear.is_gated ? outputs + sums_stride : nullptr);
        }
      }
    }
  }
}

// Whether sums stay integers over a whole row.
inline bool HasWholeRows(const LinearIntArgs& args) {
  return args.weight_bits == 8 && args.activation_scale != ActivationScale::kGroup;
}

// What a table has for integer weights: `kOther` is for the rest.
template <void (*kOther)(const LinearIntArgs&)>
inline void LinearIntOrRow(const LinearIntArgs& args) {
  HasWholeRows(args) ? LinearIntRowWith<DotRows>(args) : kOther(args);
}

}  // namespace glm::GLM_ISA
