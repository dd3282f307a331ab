// Linear layers on int8 weights with AMX tiles, whose sums stay in the tiles over a whole row.
#pragma once

#include "../kernel_table.h"
#include "linear_int_many_amx.h"
#include "linear_int_row.h"
#include "tiles_amx.h"

namespace glm::GLM_ISA {

// Two tile rows times 32 tokens: four tiles of sums, and of each operand two.
template <class Tiles>
class TileWholeRows {
 public:
  static constexpr int64_t kRowMultiple = 32;
  static constexpr int64_t kGroupSize = 2;

  TileWholeRows() { Tiles::Configure(TileConfig{}); }
  ~TileWholeRows() { Tiles::Release(); }
  TileWholeRows(const TileWholeRows&) = delete;
  TileWholeRows& operator=(const TileWholeRows&) = delete;

  void Multiply(const RowBlock& block, int64_t count, int64_t num_rows) {
    for (int64_t row = 0; row < num_rows; row += kRowMultiple) {
      const bool is_half = num_rows - row <= kTileTokens;
      if (count == 2) {
        is_half ? MultiplyTiles<2, 1>(block, row) : MultiplyTiles<2, 2>(block, row);
      } else {
        is_half ? MultiplyTiles<1, 1>(block, row) : MultiplyTiles<1, 2>(block, row);
      }
    }
  }

 private:
  static constexpr int64_t kTileTokens = 16;

  // R tile rows times A tiles of tokens from `row` on: sums of tile row r and tokens a in 2 a + r.
  template <int R, int A>
  static void MultiplyTiles(const RowBlock& block, int64_t row) {
    const uint8_t* w = block.w;
    const IntElement* x = block.x + row * block.x_stride;
    const IntElement* more = x + kTileTokens * block.x_stride;
    Tiles::template Zero<0>();
    if (R == 2) Tiles::template Zero<1>();
    if (A == 2) Tiles::template Zero<2>();
    if (R == 2 && A == 2) Tiles::template Zero<3>();
    for (int64_t line = 0; line < block.num_lines; line += kTileTokens) {
      Tiles::template Load<6>(w, kIntLineBytes);
      if (R == 2) Tiles::template Load<7>(w + block.w_stride, kIntLineBytes);
      Tiles::template Load<4>(x, block.x_stride);
      if (A == 2) Tiles::template Load<5>(more, block.x_stride);
      Tiles::template DotSignedUnsigned<0, 4, 6>();
      if (R == 2) Tiles::template DotSignedUnsigned<1, 4, 7>();
      if (A == 2) Tiles::template DotSignedUnsigned<2, 5, 6>();
      if (R == 2 && A == 2) Tiles::template DotSignedUnsigned<3, 5, 7>();
      w += kIntTileBytes;
      x += IntTileK(8);
      more += IntTileK(8);
    }
    int32_t* sums = block.sums + row * kTileN;
    int32_t* more_sums = sums + kTileTokens * kTileN;
    Tiles::template Store<0>(sums, kIntLineBytes);
    if (R == 2) Tiles::template Store<1>(sums + block.sums_stride, kIntLineBytes);
    if (A == 2) Tiles::template Store<2>(more_sums, kIntLineBytes);
    if (R == 2 && A == 2) Tiles::template Store<3>(more_sums + block.sums_stride, kIntLineBytes);
  }
};

template <class Tiles>
inline void LinearIntOrRowAmx(const LinearIntArgs& args) {
  if (HasWholeRows(args) && args.linear.num_rows >= kLeastTileTokens) {
    LinearIntRowWith<TileWholeRows<Tiles>>(args);
  } else if (HasWholeRows(args)) {
    kAvx512Table.linear_int(args);
  } else {
    LinearIntAmx<Tiles>(args);
  }
}

}  // namespace glm::GLM_ISA
