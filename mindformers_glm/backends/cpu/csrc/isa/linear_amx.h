// Linear layers in bfloat16 on AMX tiles: y = x . W^T.
//
// 16 operand rows of 32 columns are the left operand and a packed weight tile, [16 pairs of
// columns][16 weight rows][2], is the right one, both as they lie in memory. All numbers of rows
// take this way, also a single one (memory is slower than the tiles even then), so a row's result
// never depends on the others.
#pragma once

#include "../kernel_table.h"
#include "linear_work.h"
#include "tiles_amx.h"

namespace glm::GLM_ISA {

constexpr int kTileTokens = 16;
constexpr int64_t kTileRowBytes = 64;

// One or two tile rows (N) and blocks of 16 tokens (T). Tile 2 t + n holds the sums of block t and
// tile row n, 4 and 5 activations, 6 and 7 weights.
template <class Tiles, int N, int T>
inline void TileBlock(const Block<bf16_t, bf16_t>& block) {
  const bf16_t* w = block.w;
  const bf16_t* x = block.x;
  const int64_t w_second = block.w_stride, x_second = kTileTokens * block.x_stride;
  const int64_t x_row_bytes = block.x_stride * sizeof(bf16_t);
  float* sums[2] = {block.sums, block.sums + kTileTokens * kTileN};  // of the token blocks
  if (block.is_first) {
    Tiles::template Zero<0>();
    if (N > 1) Tiles::template Zero<1>();
    if (T > 1) Tiles::template Zero<2>();
    if (N > 1 && T > 1) Tiles::template Zero<3>();
  } else {
    Tiles::template Load<0>(sums[0], kTileRowBytes);
    if (N > 1) Tiles::template Load<1>(sums[0] + block.sums_stride, kTileRowBytes);
    if (T > 1) Tiles::template Load<2>(sums[1], kTileRowBytes);
    if (N > 1 && T > 1) Tiles::template Load<3>(sums[1] + block.sums_stride, kTileRowBytes);
  }
  for (int64_t kt = 0; kt < block.tiles_k; ++kt, w += kTileSize, x += kTileK) {
    Tiles::template Load<4>(x, x_row_bytes);
    Tiles::template Load<6>(w, kTileRowBytes);
    Tiles::template Dot<0, 4, 6>();
    if (N > 1) Tiles::template Load<7>(w + w_second, kTileRowBytes);
    if (N > 1) Tiles::template Dot<1, 4, 7>();
    if (T > 1) Tiles::template Load<5>(x + x_second, x_row_bytes);
    if (T > 1) Tiles::template Dot<2, 5, 6>();
    if (N > 1 && T > 1) Tiles::template Dot<3, 5, 7>();
  }
  Tiles::template Store<0>(sums[0], kTileRowBytes);
  if (N > 1) Tiles::template Store<1>(sums[0] + block.sums_stride, kTileRowBytes);
  if (T > 1) Tiles::template Store<2>(sums[1], kTileRowBytes);
  if (N > 1 && T > 1) Tiles::template Store<3>(sums[1] + block.sums_stride, kTileRowBytes);
}

// Any number of tile rows, in twos, and T blocks of 16 tokens.
template <class Tiles, int T>
inline void TileRows(Block<bf16_t, bf16_t> block, int64_t num_tile_rows) {
  for (; num_tile_rows >= 2; num_tile_rows -= 2) {
    TileBlock<Tiles, 2, T>(block);
    block.w += 2 * block.w_stride;
    block.sums += 2 * block.sums_stride;
  }
  if (num_tile_rows == 1) TileBlock<Tiles, 1, T>(block);
}

template <class Tiles>
struct AmxKernel {
  using Weight = bf16_t;
  using Rounding = bf16_t;
  using Activation = bf16_t;
  static constexpr int64_t kRowMultiple = kTileTokens;

  AmxKernel() { Tiles::Configure(TileConfig()); }
  ~AmxKernel() { Tiles::Release(); }

  // Two blocks of tokens read each pair of tile rows from one end to the other. More share a block
  // of k of 8 tile rows, 512 KiB of weights in the second-level cache beside 128 KiB of
  // activations, so that the activations of a long prefill come from afar once for 8 tile rows.
  static int64_t GroupSize(int64_t num_rows) { return num_rows <= 2 * kTileTokens ? 2 : 8; }

  void Multiply(const Block<bf16_t, bf16_t>& all, int64_t num_tile_rows, int64_t num_rows) {
    for (int64_t kt = 0; kt < all.tiles_k; kt += kBlockTilesK) {
      for (int64_t begin = 0; begin < num_rows; begin += 2 * kTileTokens) {
        Block<bf16_t, bf16_t> block = all;
        block.w += kt * kTileSize;
        block.x += begin * all.x_stride + kt * kTileK;
        block.sums += begin * kTileN;
        block.tiles_k = all.tiles_k - kt < kBlockTilesK ? all.tiles_k - kt : kBlockTilesK;
        block.is_first = kt == 0;
        if (num_rows - begin > kTileTokens) {
          TileRows<Tiles, 2>(block, num_tile_rows);
        } else {
          TileRows<Tiles, 1>(block, num_tile_rows);
        }
      }
    }
  }
};

template <class Tiles>
inline void LinearAmx(const LinearArgs& args) {
  RunLinear<AmxKernel<Tiles>>(args);
}

}  // namespace glm::GLM_ISA
