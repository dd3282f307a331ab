// What all linear kernels share: rows of activations before the products, outputs after them, and
// the division of the work. A kernel itself only makes sums of products (linear.h, linear_amx.h).
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "../kernel_table.h"
#include "../scratch.h"
#include "norm.h"
#include "work_ranges.h"

namespace glm::GLM_ISA {

static_assert(kLanes == kTileN, "a vector holds one float for each weight row of a tile");

// Tiles of k after which sums are written out: 2048 columns of some weight rows and of a token
// block stay in the second-level cache.
constexpr int64_t kBlockTilesK = 64;

// sums[r][t] (+)= w[r] . x[t] over tiles_k tiles, for some tile rows r and tokens t.
template <typename Weight, typename Activation>
struct Block {
  const Weight* w;
  int64_t w_stride;  // elements from one tile row to the next
  const Activation* x;
  int64_t x_stride;  // elements from one token to the next
  int64_t tiles_k;
  float* sums;          // [tile rows][tokens][16]
  int64_t sums_stride;  // elements from one tile row to the next
  bool is_first;        // sums are set, not added to
  // What is multiplied next, fetched into the second-level cache beside the products: so many bytes
  // with each line, a part of one where the line is used by several blocks of tokens; or none.
  const char* fetch;
  int64_t fetch_step;
};

// Rows that are multiplied: where activations are split, first what they are rounded to, then
// what that lost, also rounded. Twice the products, and of bfloat16 twice the digits.
inline int64_t NumOperandRows(const LinearArgs& args) {
  return args.num_split > 0 ? 2 * args.num_rows : args.num_rows;
}

// The first tile row that is multiplied by split activations (never of a gated pair).
inline int64_t FirstSplitTile(const LinearArgs& args) {
  return args.num_split > 0 ? (args.n - args.num_split) / kTileN : args.num_tiles;
}

// Writes the k elements of one operand row, normalised, rounded, zero padded to whole tiles.
template <typename Rounding, typename Activation>
inline void PrepareRow(const LinearArgs& args, int64_t row, Activation* out) {
  const Rounding* type = nullptr;
  const bool is_rest = row >= args.num_rows;
  const float* x = args.x + (is_rest ? row - args.num_rows : row) * args.k;
  const int64_t padded_k = CeilDiv(args.k, kTileK) * kTileK;
  const bool has_norm = args.norm_weight != nullptr;
  const Vec inverse = Set1(has_norm ? InverseRms(x, args.k, args.eps) : 1.0f);
  for (int64_t i = 0; i < padded_k; i += kLanes) {
    const int64_t left = args.k - i;
    const int64_t count = left < 0 ? 0 : left < kLanes ? left : kLanes;
    Vec v = LoadPartial(x + i, count);
    if (has_norm) v = Mul(Mul(v, inverse), LoadPartial(args.norm_weight + i, count));
    if (args.norm_bias != nullptr) v = Add(v, LoadPartial(args.norm_bias + i, count));
    if (is_rest) v = Add(v, Mul(Round(v, type), Set1(-1.0f)));
    Store(out + i, Round(v, type));
  }
}

// Elements from one operand row to the next: an odd number of cache lines. Several rows are read
// side by side, and at a distance of a power of 2 they would drive each other out of the cache.
template <typename Activation>
inline int64_t RowStride(int64_t tiles_k) {
  constexpr int64_t kLineBytes = 64;
  const int64_t lines = tiles_k * kTileK * sizeof(Activation) / kLineBytes;
  return (lines | 1) * (kLineBytes / sizeof(Activation));
}

// y of one tile row, n_begin = its first output column: sums (+ bias), or silu(gate) * up where
// `up` is given. `rest`: sums of what the rounding of activations lost, or nullptr.
inline void WriteOutputs(const LinearArgs& args, int64_t n_begin, const float* sums,
                         const float* up, const float* rest = nullptr) {
  const int64_t count = args.n - n_begin < kTileN ? args.n - n_begin : kTileN;
  const Vec bias = args.bias != nullptr ? LoadPartial(args.bias + n_begin, count) : Zero();
  for (int64_t row = 0; row < args.num_rows; ++row) {
    Vec v = Load(sums + row * kTileN);
    if (rest != nullptr) v = Add(v, Load(rest + row * kTileN));
    if (up != nullptr) {
      const Vec denominator = Add(Set1(1.0f), Exp(Mul(v, Set1(-1.0f))));
      v = Mul(Div(v, denominator), Load(up + row * kTileN));
    } else {
      v = Add(v, bias);
    }
    StorePartial(args.y + row * args.n + n_begin, v, count);
  }
}

// Small products run on the calling thread: starting a team costs more than they do.
inline int NumThreads(const LinearArgs& args) {
  constexpr int64_t kSmall = 1 << 17;  // multiply-adds
  const bool is_small = NumOperandRows(args) * args.num_tiles * kTileN * args.k < kSmall;
  return is_small ? 1 : omp_get_max_threads();
}

// The first unit of a thread where OpenMP's static schedule divides them, as in first_touch.cc.
inline int64_t FirstUnit(int64_t num_units, int64_t thread, int64_t team) {
  const int64_t rest = num_units % team;
  return num_units / team * thread + (thread < rest ? thread : rest);
}

// A kernel has the types Weight, Rounding and Activation, and
//   kRowMultiple            operand rows are filled up with zeros to a multiple of this
//   GroupSize(num_rows)     tile rows it takes at once, an even number
//   Multiply(block, num_tile_rows, num_rows)   all of k, for at most a group of tile rows
// One object of it lives in each thread while that multiplies.
template <class Kernel>
inline void RunLinear(const LinearArgs& args) {
  using Activation = typename Kernel::Activation;
  static thread_local Scratch activation_scratch, sum_scratch, range_scratch;
  const int64_t tiles_k = CeilDiv(args.k, kTileK);
  const int64_t num_rows = NumOperandRows(args);
  const int64_t padded_rows = CeilDiv(num_rows, Kernel::kRowMultiple) * Kernel::kRowMultiple;
  const int64_t stride = RowStride<Activation>(tiles_k);
  const int64_t first_split = FirstSplitTile(args);
  const int64_t group = std::max(Kernel::GroupSize(args.num_rows), Kernel::GroupSize(num_rows));
  const int64_t rows_per_unit = args.is_gated ? 2 : 1;  // tile rows that belong together
  const int64_t num_units = args.num_tiles / rows_per_unit;
  const int num_threads = NumThreads(args);
  Activation* x = activation_scratch.Reserve<Activation>(padded_rows * stride);
  float* all_sums = sum_scratch.Reserve<float>(num_threads * group * padded_rows * kTileN);
  // A tile row with split activations counts twice.
  const int64_t num_shares = num_units + args.num_tiles - first_split;
  const WorkRanges ranges(range_scratch, num_threads, [&](int64_t thread) {
    const int64_t share = FirstUnit(num_shares, thread, num_threads) * rows_per_unit;
    return share <= first_split ? share : first_split + (share - first_split) / 2;
  });

#pragma omp parallel num_threads(num_threads)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < padded_rows; ++row) {
      if (row < num_rows) {
        PrepareRow<typename Kernel::Rounding>(args, row, x + row * stride);
      } else {
        std::memset(x + row * stride, 0, stride * sizeof(Activation));
      }
    }
    const int64_t thread = omp_get_thread_num();
    Block<typename Kernel::Weight, Activation> block{};
    block.w_stride = tiles_k * kTileSize;
    block.x = x;
    block.x_stride = stride;
    block.tiles_k = tiles_k;
    block.sums_stride = padded_rows * kTileN;
    block.sums = all_sums + thread * group * block.sums_stride;
    Kernel kernel;
    const auto run = [&](int64_t first, int64_t end, int64_t rows) {
      const int64_t most = Kernel::GroupSize(rows);
      for (; first < end; first += most) {
        const int64_t count = std::min(end - first, most);
        block.w = static_cast<const typename Kernel::Weight*>(args.tiles) + first * block.w_stride;
        kernel.Multiply(block, count, rows);
        for (int64_t r = 0; r < count; r += rows_per_unit) {
          const float* sums = block.sums + r * block.sums_stride;
          WriteOutputs(args, (first + r) / rows_per_unit * kTileN, sums,
                       args.is_gated ? sums + block.sums_stride : nullptr,
                       rows > args.num_rows ? sums + args.num_rows * kTileN : nullptr);
        }
      }
    };
    for (;;) {
      const auto part = ranges.Take(thread, group);
      if (part.begin == part.end) break;
      run(part.begin, std::min(part.end, first_split), args.num_rows);
      run(std::max(part.begin, first_split), part.end, num_rows);
    }
  }
}

}  // namespace glm::GLM_ISA
