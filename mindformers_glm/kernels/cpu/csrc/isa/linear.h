// Linear layers on packed tiles: y = x . W^T, computed as y^T = W . x^T.
//
// A dot product takes kLanes (or twice that) steps of k at once and adds its lanes up at the end of
// each block of k. The order of these sums is the same for every number of rows and threads, so a
// row's result does not depend on what else is in the batch.
#pragma once

#include <omp.h>

#include <type_traits>

#include "../kernel_table.h"
#include "../scratch.h"
#include "norm.h"

namespace glm::GLM_ISA {

// Products in float32 of weights of type W with activations rounded to X.
template <typename W, typename X>
struct DotF32 {
  using Weight = W;
  using Rounding = X;
  using Activation = float;
  static constexpr int kStep = kLanes;  // elements of k that one MulAdd takes
  static Vec MultiplyAdd(const W* weight, const float* x, const Vec& sum) {
    return MulAdd(Load(weight), Load(x), sum);
  }
};

// Tiles of k after which sums are written out: 2048 columns of 16 weight rows and of a token block
// stay in the second-level cache.
constexpr int64_t kBlockTilesK = 64;

// Rows that are multiplied: where activations are split, first what they are rounded to, then
// what that lost, also rounded. Twice the products, and of bfloat16 twice the digits.
inline int64_t NumOperandRows(const LinearArgs& args) {
  return args.is_split ? 2 * args.num_rows : args.num_rows;
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
    if (is_rest) v = Add(v, Mul(Round(v, type), Set1(-1.0f)));
    Store(out + i, Round(v, type));
  }
}

// out[i] (+)= sum of the lanes of a[i] for R < 4 vectors, added up as StoreSums4 does.
template <int R>
inline void StoreFewSums(const Vec* a, float* out, bool is_first) {
  Vec padded[4] = {Zero(), Zero(), Zero(), Zero()};
  float sums[4];
  for (int i = 0; i < R; ++i) {
    padded[i] = a[i];
    sums[i] = out[i];
  }
  StoreSums4(padded, sums, is_first);
  for (int i = 0; i < R; ++i) out[i] = sums[i];
}

// sums[t][r] (+)= W[r] . x[t] over `tiles_k` tiles, for R weight rows and T tokens.
// `sums` has kTileN floats a token.
template <typename Dot, int R, int T>
inline void DotBlock(const typename Dot::Weight* w, const typename Dot::Activation* x,
                     int64_t x_stride, int64_t tiles_k, float* sums, bool is_first) {
  Vec acc[T][R];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[t][r] = Zero();
  }
  for (int64_t kt = 0; kt < tiles_k; ++kt, w += kTileSize, x += kTileK) {
    // Some rows of every tile are no stream that the processor would fetch ahead by itself, so
    // each pass asks for the same rows of the next block of k.
    for (int r = 0; R < kTileN && r < R; ++r) {
      Prefetch<kTileK * sizeof(*w)>(w + kBlockTilesK * kTileSize + r * kTileK);
    }
#pragma GCC unroll 2
    for (int step = 0; step < kTileK; step += Dot::kStep) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          acc[t][r] = Dot::MultiplyAdd(w + r * kTileK + step, x + t * x_stride + step, acc[t][r]);
        }
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r + 4 <= R; r += 4) {
      StoreSums4(acc[t] + r, sums + t * kTileN + r, is_first);
    }
    if constexpr (R < 4) StoreFewSums<R>(acc[t], sums + t * kTileN, is_first);
  }
}

// All 16 rows of one tile row against T tokens.
template <typename Dot, int T>
inline void TileRowBlock(const typename Dot::Weight* w, const typename Dot::Activation* x,
                         int64_t x_stride, int64_t tiles_k, float* sums, bool is_first) {
  constexpr int kRows = kRowsForTokens[T];
  for (int r = 0; r < kTileN; r += kRows) {
    DotBlock<Dot, kRows, T>(w + r * kTileK, x, x_stride, tiles_k, sums + r, is_first);
  }
}

// The same for 1 <= num_tokens <= T tokens.
template <typename Dot, int T>
inline void TileRowTokens(int64_t num_tokens, const typename Dot::Weight* w,
                          const typename Dot::Activation* x, int64_t x_stride, int64_t tiles_k,
                          float* sums, bool is_first) {
  if constexpr (T > 1) {
    if (num_tokens < T) {
      TileRowTokens<Dot, T - 1>(num_tokens, w, x, x_stride, tiles_k, sums, is_first);
      return;
    }
  }
  TileRowBlock<Dot, T>(w, x, x_stride, tiles_k, sums, is_first);
}

// One tile row against all tokens: sums [num_rows, 16].
template <typename Dot>
inline void TileRow(const typename Dot::Weight* w, const typename Dot::Activation* x,
                    int64_t num_rows, int64_t tiles_k, float* sums) {
  const int64_t x_stride = tiles_k * kTileK;
  // Blocks of even sizes: 8 tokens as 4 + 4, not as 6 + 2.
  const int64_t num_blocks = CeilDiv(num_rows, kTokenBlock);
  for (int64_t kt = 0; kt < tiles_k; kt += kBlockTilesK) {
    const int64_t count = tiles_k - kt < kBlockTilesK ? tiles_k - kt : kBlockTilesK;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t begin = num_rows * block / num_blocks;
      const int64_t end = num_rows * (block + 1) / num_blocks;
      TileRowTokens<Dot, kTokenBlock>(end - begin, w + kt * kTileSize,
                                      x + begin * x_stride + kt * kTileK, x_stride, count,
                                      sums + begin * kTileN, kt == 0);
    }
  }
}

// y of one tile row, n_begin = its first output column: sums (+ bias), or silu(gate) * up where
// `up` is given (never with split activations).
inline void WriteOutputs(const LinearArgs& args, int64_t n_begin, const float* sums,
                         const float* up) {
  const int64_t count = args.n - n_begin < kTileN ? args.n - n_begin : kTileN;
  const Vec bias = args.bias != nullptr ? LoadPartial(args.bias + n_begin, count) : Zero();
  for (int64_t row = 0; row < args.num_rows; ++row) {
    Vec v = Load(sums + row * kTileN);
    if (args.is_split) v = Add(v, Load(sums + (args.num_rows + row) * kTileN));
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

template <typename Dot>
inline void LinearWith(const LinearArgs& args) {
  using Activation = typename Dot::Activation;
  using Weight = typename Dot::Weight;
  static thread_local Scratch activation_scratch, sum_scratch;
  const int64_t tiles_k = CeilDiv(args.k, kTileK);
  const int64_t rows_per_unit = args.is_gated ? 2 : 1;  // tile rows that belong together
  const int64_t num_units = args.num_tiles / rows_per_unit;
  const int64_t tile_row_size = tiles_k * kTileSize;
  const int64_t num_rows = NumOperandRows(args);
  const int64_t sums_size = num_rows * kTileN;
  const int num_threads = NumThreads(args);
  Activation* x = activation_scratch.Reserve<Activation>(num_rows * tiles_k * kTileK);
  float* all_sums = sum_scratch.Reserve<float>(num_threads * rows_per_unit * sums_size);

#pragma omp parallel num_threads(num_threads)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
      PrepareRow<typename Dot::Rounding>(args, row, x + row * tiles_k * kTileK);
    }
    float* sums = all_sums + omp_get_thread_num() * rows_per_unit * sums_size;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < num_units; ++unit) {
      const Weight* w =
          static_cast<const Weight*>(args.tiles) + unit * rows_per_unit * tile_row_size;
      for (int64_t part = 0; part < rows_per_unit; ++part) {
        TileRow<Dot>(w + part * tile_row_size, x, num_rows, tiles_k, sums + part * sums_size);
      }
      WriteOutputs(args, unit * kTileN, sums, args.is_gated ? sums + sums_size : nullptr);
    }
  }
}

inline void LinearF32(const LinearArgs& args) {
  if (args.weight_dtype == DType::kF32) {
    LinearWith<DotF32<float, float>>(args);
  } else if (args.weight_dtype == DType::kBF16) {
    LinearWith<DotF32<bf16_t, float>>(args);
  } else {
    LinearWith<DotF32<f16_t, float>>(args);
  }
}

}  // namespace glm::GLM_ISA
