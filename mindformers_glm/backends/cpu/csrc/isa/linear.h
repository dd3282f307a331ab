// Linear layers on packed tiles with vectors: y = x . W^T.
//
// A vector holds 16 weight rows at one or two neighbouring columns (pack.cc), so a product with a
// token's activations, broadcast, adds to 16 outputs of that token, and nothing is summed across
// lanes. Tiles are read front to back, once for a whole block of tokens. An output is one chain of
// additions along k for each block of k, whatever the number of rows, tile rows at a time and
// threads, so a row's result does not depend on what else is in the batch.
#pragma once

#include <type_traits>

#include "../kernel_table.h"
#include "linear_work.h"

namespace glm::GLM_ISA {

// Elements of one line of a tile: two columns of 16 weight rows.
constexpr int64_t kLineSize = 2 * kTileN;

constexpr int64_t kPrefetchTiles = 16;
// From so many tokens on the products take as long as their weights need to come from memory, and
// the processor itself does not fetch far enough ahead.
constexpr int64_t kLeastFetchingTokens = 7;

// Products in float32 of weights of type W with activations rounded to X: the two columns of a
// line one after the other.
template <typename W, typename X>
struct DotF32 {
  using Weight = W;
  using Rounding = X;
  using Activation = float;
  using Operand = Vec;
  static constexpr int kSteps = 2;
  static Vec LoadWeights(const W* line, int step) {
    if constexpr (std::is_same_v<W, bf16_t>) {
      return step == 0 ? LoadEven(line) : LoadOdd(line);
    } else {
      return Load(line + step * kTileN);
    }
  }
  static Vec LoadActivation(const float* x, int step) { return Set1(x[step]); }
  static Vec MultiplyAdd(const Vec& w, const Vec& x, const Vec& sum) { return MulAdd(w, x, sum); }
};

// R tile rows and T tokens.
template <typename Dot, int R, int T>
inline void DotBlock(const Block<typename Dot::Weight, typename Dot::Activation>& block) {
  const typename Dot::Weight* w = block.w;
  const typename Dot::Activation* x = block.x;
  const int64_t w_stride = block.w_stride, x_stride = block.x_stride;
  const char* fetch = block.fetch;
  Vec acc[T][R];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[t][r] = Zero();
  }
  for (int64_t line = 0; line < block.tiles_k * (kTileK / 2); ++line, w += kLineSize, x += 2) {
    // One stream of memory alone is not fetched far enough ahead by the processor itself.
    if constexpr (R == 1) Prefetch<kLineSize * sizeof(*w)>(w + kPrefetchTiles * kTileSize);
    if (R > 1 && block.fetch_step != 0) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        Prefetch<kLineSize * sizeof(*w)>(fetch + r * w_stride * sizeof(*w));
      }
      fetch += block.fetch_step;
    }
#pragma GCC unroll 2
    for (int step = 0; step < Dot::kSteps; ++step) {
      typename Dot::Operand weights[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) weights[r] = Dot::LoadWeights(w + r * w_stride, step);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const typename Dot::Operand activation = Dot::LoadActivation(x + t * x_stride, step);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          acc[t][r] = Dot::MultiplyAdd(weights[r], activation, acc[t][r]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* sums = block.sums + r * block.sums_stride + t * kTileN;
      Store(sums, block.is_first ? acc[t][r] : Add(Load(sums), acc[t][r]));
    }
  }
}

// As many tile rows at a time as there are registers for.
template <typename Dot, int T>
inline void TokenBlock(Block<typename Dot::Weight, typename Dot::Activation> block,
                       int64_t num_tile_rows) {
  constexpr int kMost = kTileRowsForTokens[T];
  const auto run = [&](auto rows) {
    constexpr int R = decltype(rows)::value;
    for (; num_tile_rows >= R; num_tile_rows -= R) {
      DotBlock<Dot, R, T>(block);
      block.w += R * block.w_stride;
      block.fetch += R * block.w_stride * sizeof(*block.w);
      block.sums += R * block.sums_stride;
    }
  };
  run(std::integral_constant<int, kMost>());
  if constexpr (kMost > 2) run(std::integral_constant<int, 2>());
  if constexpr (kMost > 1) run(std::integral_constant<int, 1>());
}

// The same for 1 <= num_tokens <= T tokens.
template <typename Dot, int T>
inline void AnyTokenBlock(int64_t num_tokens,
                          const Block<typename Dot::Weight, typename Dot::Activation>& block,
                          int64_t num_tile_rows) {
  if constexpr (T > 1) {
    if (num_tokens < T) return AnyTokenBlock<Dot, T - 1>(num_tokens, block, num_tile_rows);
  }
  TokenBlock<Dot, T>(block, num_tile_rows);
}

template <typename Dot>
struct VectorKernel {
  using Weight = typename Dot::Weight;
  using Rounding = typename Dot::Rounding;
  using Activation = typename Dot::Activation;
  static constexpr int64_t kRowMultiple = 1;

  // As many as a block of tokens takes at a time, so that a single block reads them from one end to
  // the other.
  static int64_t GroupSize(int64_t num_rows) {
    const int rows = kTileRowsForTokens[CeilDiv(num_rows, CeilDiv(num_rows, kTokenBlock))];
    return rows % 2 == 0 ? rows : 2 * rows;
  }

  static void Multiply(const Block<Weight, Activation>& all, int64_t num_tile_rows,
                       int64_t num_rows) {
    // Blocks of even sizes: 16 tokens as 8 + 8, not as 12 + 4.
    const int64_t num_blocks = CeilDiv(num_rows, kTokenBlock);
    constexpr int64_t kLineBytes = kLineSize * sizeof(Weight);
    for (int64_t kt = 0; kt < all.tiles_k; kt += kBlockTilesK) {
      const bool is_last = kt + kBlockTilesK >= all.tiles_k;
      const Weight* next =
          is_last ? all.w + num_tile_rows * all.w_stride : all.w + (kt + kBlockTilesK) * kTileSize;
      for (int64_t i = 0; i < num_blocks; ++i) {
        const int64_t begin = num_rows * i / num_blocks, end = num_rows * (i + 1) / num_blocks;
        Block<Weight, Activation> block = all;
        block.w += kt * kTileSize;
        block.x += begin * all.x_stride + kt * kTileK;
        block.sums += begin * kTileN;
        block.tiles_k = all.tiles_k - kt < kBlockTilesK ? all.tiles_k - kt : kBlockTilesK;
        block.is_first = kt == 0;
        block.fetch_step = num_rows < kLeastFetchingTokens ? 0 : kLineBytes / num_blocks;
        block.fetch = reinterpret_cast<const char*>(next) +
                      i * (block.tiles_k * (kTileK / 2) * block.fetch_step);
        AnyTokenBlock<Dot, kTokenBlock>(end - begin, block, num_tile_rows);
      }
    }
  }
};

template <typename Dot>
inline void LinearWith(const LinearArgs& args) {
  RunLinear<VectorKernel<Dot>>(args);
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
