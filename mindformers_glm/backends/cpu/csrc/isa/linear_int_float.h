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
  Vec negative_zeros, scales;
  Vec Of(const Vec& codes) const { return Mul(Add(codes, negative_zeros), scales); }
};

// Calls use(column, 16 weights) for the columns of a line of a tile in their order.
template <int kBits, typename Use>
inline void ForColumns(const uint8_t* line, const Meaning& meaning, const Use& use) {
  constexpr int32_t kMask = kBits == 8 ? 255 : 15;
  use(0, meaning.Of(WidenBits<0, kMask>(line)));
  use(1, meaning.Of(WidenBits<8, kMask>(line)));
  use(2, meaning.Of(WidenBits<16, kMask>(line)));
  use(3, meaning.Of(WidenBits<24, kMask>(line)));
  if constexpr (kBits == 4) {
    use(4, meaning.Of(WidenBits<4, kMask>(line)));
    use(5, meaning.Of(WidenBits<12, kMask>(line)));
    use(6, meaning.Of(WidenBits<20, kMask>(line)));
    use(7, meaning.Of(WidenBits<28, kMask>(line)));
  }
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
    const Vec zeros = args_.zeros != nullptr ? ToFloats(LoadZeros(args_.zeros + place))
                                             : Set1(kBits == 8 ? 128.0f : 8.0f);
    return {Mul(zeros, Set1(-1.0f)), Load(args_.scales + place)};
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
    for (; begin < group_end; begin += stored.kLineK, out += stored.kLineK * kTileN) {
      ForColumns<kBits>(stored.Line(tile_row, begin), meaning, [&](int column, const Vec& weights) {
        Store(out + column * kTileN, weights);
      });
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
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        ForColumns<kBits>(lines[r], meanings[r], [&](int column, const Vec& weights) {
          acc[r] = MulAdd(weights, Set1(x[column]), acc[r]);
        });
        Prefetch<kIntLineBytes>(lines[r] + kWideningAhead);
        lines[r] += kIntLineBytes;
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
