// Linear layers in bfloat16 on AMX tiles: y^T = W . x^T.
//
// A packed weight tile [16 rows][32 columns] is the left operand as it lies in memory. The
// activations are brought into the layout of the right operand once per call: for 16 tokens and 32
// columns, [16 pairs of columns][16 tokens][2]. All numbers of rows take this way, also a single
// one (memory is slower than the tiles even then), so a row's result never depends on the others.
#pragma once

#include <omp.h>

#include "../kernel_table.h"
#include "../scratch.h"
#include "linear.h"
#include "tiles_amx.h"

namespace glm::GLM_ISA {

constexpr int kTileTokens = 16;
constexpr int64_t kTileRowBytes = 64;

// Rows [first, first + 16) of x in the right operand's layout: [tiles_k][16][16][2]. `rows` is
// working memory [16, tiles_k * 32]. Tokens that do not exist are zero.
inline void PackTokens(const LinearArgs& args, int64_t first, int64_t tiles_k, bf16_t* rows,
                       bf16_t* out) {
  const int64_t width = tiles_k * kTileK;
  const int64_t left = NumOperandRows(args) - first;
  const int64_t count = left < kTileTokens ? left : kTileTokens;
  for (int64_t t = 0; t < count; ++t) PrepareRow<bf16_t>(args, first + t, rows + t * width);
  for (int64_t kt = 0; kt < tiles_k; ++kt) {
    Vec pairs[kTileTokens];  // pairs of bfloat16 travel as the bits of a float
    for (int64_t t = 0; t < kTileTokens; ++t) {
      const void* source = rows + t * width + kt * kTileK;
      pairs[t] = t < count ? Load(static_cast<const float*>(source)) : Zero();
    }
    Transpose(pairs);
    for (int i = 0; i < kTileTokens; ++i) {
      Store(reinterpret_cast<float*>(out + kt * kTileSize) + i * kTileTokens, pairs[i]);
    }
  }
}

// sums (+)= W . x^T over `tiles_k` tiles, for one or two tile rows (N) and blocks of 16 tokens (T).
// sums[n][t] is [16 weight rows][16 tokens]; `w_stride`, `x_stride` and `sums_stride` lead to the
// second tile row, token block and tile row of sums.
template <class Tiles, int N, int T>
inline void TileBlock(const bf16_t* w, int64_t w_stride, const bf16_t* x, int64_t x_stride,
                      int64_t tiles_k, float* sums, int64_t sums_stride, bool is_first) {
  constexpr int64_t kSumsTile = kTileN * kTileTokens;
  if (is_first) {
    Tiles::template Zero<0>();
    if (T > 1) Tiles::template Zero<1>();
    if (N > 1) Tiles::template Zero<2>();
    if (N > 1 && T > 1) Tiles::template Zero<3>();
  } else {
    Tiles::template Load<0>(sums, kTileRowBytes);
    if (T > 1) Tiles::template Load<1>(sums + kSumsTile, kTileRowBytes);
    if (N > 1) Tiles::template Load<2>(sums + sums_stride, kTileRowBytes);
    if (N > 1 && T > 1) Tiles::template Load<3>(sums + sums_stride + kSumsTile, kTileRowBytes);
  }
  for (int64_t kt = 0; kt < tiles_k; ++kt, w += kTileSize, x += kTileSize) {
    Tiles::template Load<4>(w, kTileRowBytes);
    Tiles::template Load<6>(x, kTileRowBytes);
    Tiles::template Dot<0, 4, 6>();
    if (T > 1) Tiles::template Load<7>(x + x_stride, kTileRowBytes);
    if (T > 1) Tiles::template Dot<1, 4, 7>();
    if (N > 1) Tiles::template Load<5>(w + w_stride, kTileRowBytes);
    if (N > 1) Tiles::template Dot<2, 5, 6>();
    if (N > 1 && T > 1) Tiles::template Dot<3, 5, 7>();
  }
  Tiles::template Store<0>(sums, kTileRowBytes);
  if (T > 1) Tiles::template Store<1>(sums + kSumsTile, kTileRowBytes);
  if (N > 1) Tiles::template Store<2>(sums + sums_stride, kTileRowBytes);
  if (N > 1 && T > 1) Tiles::template Store<3>(sums + sums_stride + kSumsTile, kTileRowBytes);
}

// N tile rows against all tokens. sums: N times [token blocks][16 tokens][16 weight rows], as
// WriteOutputs wants them.
template <class Tiles, int N>
inline void TileRows(const bf16_t* w, const bf16_t* x, int64_t token_blocks, int64_t tiles_k,
                     float* sums) {
  const int64_t stride = tiles_k * kTileSize;  // of tile rows and of token blocks
  const int64_t sums_stride = token_blocks * kTileN * kTileTokens;
  for (int64_t kt = 0; kt < tiles_k; kt += kBlockTilesK) {
    const int64_t count = tiles_k - kt < kBlockTilesK ? tiles_k - kt : kBlockTilesK;
    const bf16_t* wk = w + kt * kTileSize;
    for (int64_t block = 0; block < token_blocks; block += 2) {
      const bf16_t* xk = x + block * stride + kt * kTileSize;
      float* block_sums = sums + block * kTileN * kTileTokens;
      if (block + 1 < token_blocks) {
        TileBlock<Tiles, N, 2>(wk, stride, xk, stride, count, block_sums, sums_stride, kt == 0);
      } else {
        TileBlock<Tiles, N, 1>(wk, stride, xk, stride, count, block_sums, sums_stride, kt == 0);
      }
    }
  }
  for (int64_t tile = 0; tile < N * token_blocks; ++tile) {
    float* values = sums + tile * kTileN * kTileTokens;
    Vec rows[kTileN];
    for (int n = 0; n < kTileN; ++n) rows[n] = Load(values + n * kTileTokens);
    Transpose(rows);
    for (int t = 0; t < kTileTokens; ++t) Store(values + t * kTileN, rows[t]);
  }
}

template <class Tiles>
inline void LinearAmx(const LinearArgs& args) {
  static thread_local Scratch activation_scratch, row_scratch, sum_scratch;
  const int64_t tiles_k = CeilDiv(args.k, kTileK);
  const int64_t token_blocks = CeilDiv(NumOperandRows(args), kTileTokens);
  const int64_t tile_row_size = tiles_k * kTileSize;
  const int64_t sums_size = token_blocks * kTileTokens * kTileN;
  const int64_t rows_size = kTileTokens * tiles_k * kTileK;
  const int num_threads = NumThreads(args);
  bf16_t* x = activation_scratch.Reserve<bf16_t>(token_blocks * tile_row_size);
  bf16_t* all_rows = row_scratch.Reserve<bf16_t>(num_threads * rows_size);
  float* all_sums = sum_scratch.Reserve<float>(num_threads * 2 * sums_size);

#pragma omp parallel num_threads(num_threads)
  {
    bf16_t* rows = all_rows + omp_get_thread_num() * rows_size;
    float* sums = all_sums + omp_get_thread_num() * 2 * sums_size;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < token_blocks; ++block) {
      PackTokens(args, block * kTileTokens, tiles_k, rows, x + block * tile_row_size);
    }
    Tiles::Configure(TileConfig());
    // Tile rows in twos: neighbours, or a gate with its up projection.
#pragma omp for schedule(static)
    for (int64_t row = 0; row < args.num_tiles; row += 2) {
      const bf16_t* w = static_cast<const bf16_t*>(args.tiles) + row * tile_row_size;
      if (row + 1 == args.num_tiles) {
        TileRows<Tiles, 1>(w, x, token_blocks, tiles_k, sums);
        WriteOutputs(args, row * kTileN, sums, nullptr);
        continue;
      }
      TileRows<Tiles, 2>(w, x, token_blocks, tiles_k, sums);
      if (args.is_gated) {
        WriteOutputs(args, row / 2 * kTileN, sums, sums + sums_size);
      } else {
        WriteOutputs(args, row * kTileN, sums, nullptr);
        WriteOutputs(args, (row + 1) * kTileN, sums + sums_size, nullptr);
      }
    }
    Tiles::Release();
  }
}

}  // namespace glm::GLM_ISA
