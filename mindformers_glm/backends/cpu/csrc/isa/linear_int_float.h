// Linear layers on integer weights with activations as they are, in float32.
//
// A thread makes floats of some tile rows for a block of k, (code - zero point) * scale, which stay
// in its second-level cache, and multiplies them as linear.h does float32 weights: results are those
// of the float matrix that is meant, in every bit. Memory is read as integers; the conversion is
// what a single row waits for.
#pragma once

#include <omp.h>

#include <cstring>

#include "../kernel_table.h"
#include "../scratch.h"
#include "linear.h"

namespace glm::GLM_ISA {

// How far ahead of a line memory is fetched where each is used once.
constexpr int64_t kWideningAhead = 4096;

// What the codes of 16 weight rows mean in one group of columns.
struct Meaning {
  float zeros[kTileN];
  float scales[kTileN];
};

// Four columns of 16 rows, from bits kShift on of each byte of a line.
template <int kShift, uint32_t kMask>
inline void WidenColumns(const uint32_t* words, const Meaning& meaning, float* out) {
  for (int column = 0; column < 4; ++column) {
    for (int64_t n = 0; n < kTileN; ++n) {
      const uint32_t code = words[n] >> (8 * column + kShift) & kMask;
      const float from_zero = static_cast<float>(static_cast<int32_t>(code)) - meaning.zeros[n];
      out[column * kTileN + n] = from_zero * meaning.scales[n];
    }
  }
}

// A line of a tile as columns of 16 floats; returns where the next one goes.
template <int kBits>
inline float* WidenLine(const uint8_t* line, const Meaning& meaning, float* out) {
  uint32_t words[kTileN];
  std::memcpy(words, line, sizeof(words));
  if (kBits == 8) {
    WidenColumns<0, 255>(words, meaning, out);
    return out + 4 * kTileN;
  }
  WidenColumns<0, 15>(words, meaning, out);
  WidenColumns<4, 15>(words, meaning, out + 4 * kTileN);
  return out + 8 * kTileN;
}

// Where codes, zero points and scales of a matrix lie.
template <int kBits>
class StoredRows {
 public:
  static constexpr int64_t kLineK = kBits == 8 ? 4 : 8;

  explicit StoredRows(const LinearIntArgs& args) : args_(args) {
    const int64_t padded_k = CeilDiv(args.linear.k, kActivationGroup) * kActivationGroup;
    group_size_ = args.group_size > 0 ? args.group_size : padded_k;
    num_groups_ = padded_k / group_size_;
    tile_row_bytes_ = CeilDiv(args.linear.k, IntTileK(kBits)) * kIntTileBytes;
  }

  // The line from `column` on, a multiple of kLineK.
  const uint8_t* Line(int64_t tile_row, int64_t column) const {
    return static_cast<const uint8_t*>(args_.linear.tiles) + tile_row * tile_row_bytes_ +
           column / kLineK * kIntLineBytes;
  }
  // The first column that has another meaning than `column`.
  int64_t GroupEnd(int64_t column) const { return (column / group_size_ + 1) * group_size_; }
  Meaning MeaningOf(int64_t tile_row, int64_t column) const {
    const int64_t place = (tile_row * num_groups_ + column / group_size_) * kTileN;
    Meaning meaning;
    for (int64_t n = 0; n < kTileN; ++n) {
      const int zero = args_.zeros != nullptr ? args_.zeros[place + n] : kBits == 8 ? 128 : 8;
      meaning.zeros[n] = static_cast<float>(zero);
      meaning.scales[n] = args_.scales[place + n];
    }
    return meaning;
  }

 private:
  const LinearIntArgs& args_;
  int64_t group_size_, num_groups_, tile_row_bytes_;
};

// Columns begin.. to end of a tile row, both multiples of 32, as float tiles.
template <int kBits>
inline void WidenTileRow(const StoredRows<kBits>& stored, int64_t tile_row, int64_t begin,
                         int64_t end, float* out) {
  while (begin < end) {
    const Meaning meaning = stored.MeaningOf(tile_row, begin);
    const int64_t group_end = std::min(stored.GroupEnd(begin), end);
    for (; begin < group_end; begin += stored.kLineK) {
      out = WidenLine<kBits>(stored.Line(tile_row, begin), meaning, out);
    }
  }
}

// The same for one row of x, where nothing would read the floats again: R tile rows times x from
// `begin` on, in the order of DotBlock's sums.
template <int kBits, int R>
inline void MultiplyWhileWidening(const StoredRows<kBits>& stored, int64_t tile_row, int64_t begin,
                                  int64_t end, const float* x, float* sums) {
  const bool is_first = begin == 0;
  Vec acc[R];
  for (int r = 0; r < R; ++r) acc[r] = Zero();
  while (begin < end) {
    Meaning meanings[R];
    const uint8_t* lines[R];
    for (int r = 0; r < R; ++r) meanings[r] = stored.MeaningOf(tile_row + r, begin);
    for (int r = 0; r < R; ++r) lines[r] = stored.Line(tile_row + r, begin);
    const int64_t group_end = std::min(stored.GroupEnd(begin), end);
    for (; begin < group_end; begin += stored.kLineK, x += stored.kLineK) {
      alignas(64) float columns[R][stored.kLineK * kTileN];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        WidenLine<kBits>(lines[r], meanings[r], columns[r]);
        Prefetch<kIntLineBytes>(lines[r] + kWideningAhead);
        lines[r] += kIntLineBytes;
      }
#pragma GCC unroll 8
      for (int64_t column = 0; column < stored.kLineK; ++column) {
        const Vec value = Set1(x[column]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          acc[r] = MulAdd(Load(columns[r] + column * kTileN), value, acc[r]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float* out = sums + r * kTileN;
    Store(out, is_first ? acc[r] : Add(Load(out), acc[r]));
  }
}

// The operand rows in float32, normalised, in the order of the tiles' columns.
inline void PrepareOrderedRow(const LinearIntArgs& args, int64_t row, float* in_order, float* out) {
  if (args.order == nullptr) return PrepareRow<float>(args.linear, row, out);
  PrepareRow<float>(args.linear, row, in_order);
  const int64_t k = args.linear.k;
  for (int64_t i = 0; i < k; ++i) out[i] = in_order[args.order[i]];
  std::memset(out + k, 0, (CeilDiv(k, kTileK) * kTileK - k) * sizeof(float));
}

// sums of `count` tile rows from `first` on and all rows of x.
template <int kBits>
inline void MultiplyWidened(const LinearIntArgs& args, int64_t first, int64_t count, const float* x,
                            int64_t x_stride, float* widened, float* sums) {
  const int64_t num_rows = args.linear.num_rows, tiles_k = CeilDiv(args.linear.k, kTileK);
  const int64_t num_blocks = CeilDiv(num_rows, kTokenBlock);
  Block<float, float> block{};
  block.w = widened;
  block.w_stride = kBlockTilesK * kTileSize;
  block.x_stride = x_stride;
  block.sums_stride = num_rows * kTileN;
  block.fetch = reinterpret_cast<const char*>(widened);
  const StoredRows<kBits> stored(args);
  for (int64_t kt = 0; kt < tiles_k; kt += kBlockTilesK) {
    block.tiles_k = std::min(tiles_k - kt, kBlockTilesK);
    block.is_first = kt == 0;
    const int64_t begin_k = kt * kTileK, end_k = begin_k + block.tiles_k * kTileK;
    if (num_rows == 1) {
      int64_t r = 0;
      for (; r + 2 <= count; r += 2) {
        MultiplyWhileWidening<kBits, 2>(stored, first + r, begin_k, end_k, x + begin_k,
                                        sums + r * kTileN);
      }
      for (; r < count; ++r) {
        MultiplyWhileWidening<kBits, 1>(stored, first + r, begin_k, end_k, x + begin_k,
                                        sums + r * kTileN);
      }
      continue;
    }
    for (int64_t r = 0; r < count; ++r) {
      WidenTileRow(stored, first + r, begin_k, end_k, widened + r * block.w_stride);
    }
    for (int64_t i = 0; i < num_blocks; ++i) {
      const int64_t begin = num_rows * i / num_blocks, end = num_rows * (i + 1) / num_blocks;
      block.x = x + begin * x_stride + kt * kTileK;
      block.sums = sums + begin * kTileN;
      AnyTokenBlock<DotF32<float, float>, kTokenBlock>(end - begin, block, count);
    }
  }
}

template <int kBits>
inline void LinearIntFloatOf(const LinearIntArgs& args) {
  static thread_local Scratch x_scratch, order_scratch, widened_scratch, sum_scratch, range_scratch;
  const LinearArgs& linear = args.linear;
  const int64_t num_rows = linear.num_rows, rows_per_unit = linear.is_gated ? 2 : 1;
  const int64_t num_units = linear.num_tiles / rows_per_unit;
  const int64_t group = VectorKernel<DotF32<float, float>>::GroupSize(num_rows);
  const int64_t stride = RowStride<float>(CeilDiv(linear.k, kTileK));
  const int num_threads = NumThreads(linear);
  const int64_t sums_stride = num_rows * kTileN, widened_size = group * kBlockTilesK * kTileSize;
  float* x = x_scratch.Reserve<float>(num_rows * stride);
  float* in_order = order_scratch.Reserve<float>(num_threads * stride);
  float* all_widened = widened_scratch.Reserve<float>(num_threads * widened_size);
  float* all_sums = sum_scratch.Reserve<float>(num_threads * group * sums_stride);
  const WorkRanges ranges(range_scratch, num_threads, [&](int64_t thread) {
    return FirstUnit(num_units, thread, num_threads) * rows_per_unit;
  });

#pragma omp parallel num_threads(num_threads)
  {
    const int64_t thread = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
      PrepareOrderedRow(args, row, in_order + thread * stride, x + row * stride);
    }
    float* widened = all_widened + thread * widened_size;
    float* sums = all_sums + thread * group * sums_stride;
    for (;;) {
      const auto part = ranges.Take(thread, group);
      if (part.begin == part.end) break;
      for (int64_t first = part.begin; first < part.end; first += group) {
        const int64_t count = std::min(part.end - first, group);
        MultiplyWidened<kBits>(args, first, count, x, stride, widened, sums);
        for (int64_t r = 0; r < count; r += rows_per_unit) {
          const float* of_row = sums + r * sums_stride;
          WriteOutputs(linear, (first + r) / rows_per_unit * kTileN, of_row,
                       linear.is_gated ? of_row + sums_stride : nullptr);
        }
      }
    }
  }
}

inline void LinearIntFloat(const LinearIntArgs& args) {
  args.weight_bits == 8 ? LinearIntFloatOf<8>(args) : LinearIntFloatOf<4>(args);
}

}  // namespace glm::GLM_ISA
