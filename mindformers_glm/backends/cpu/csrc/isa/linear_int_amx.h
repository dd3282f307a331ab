// Linear layers on integer weights with AMX tiles: signed activations times unsigned weights.
//
// 16 tokens of 64 columns are the left operand as they lie in memory, a tile of int8 weights is the
// right one; int4 is widened to such tiles first. The sums of a group are integers as those of the
// dot products are, so both give the same bits, and few rows are left to the dot products.
#pragma once

#include "../kernel_table.h"
#include "linear_int.h"
#include "tiles_amx.h"

namespace glm::GLM_ISA {

// A dot product of 16 tokens takes the tiles as long as the vector units need for two or three.
constexpr int64_t kLeastTileTokens = 4;

template <class Tiles, int kBits, int P, bool kAffine = false>
class TileInt {
 public:
  static constexpr int64_t kRowMultiple = 16;
  static constexpr bool kInTiles = false;

  static int64_t GroupSize(int64_t) { return 2; }  // tile rows: a gate and its up projection

  // Groups of 32 columns take half of a tile's.
  explicit TileInt(const ActivationRows& x)
      : columns_(x.group_size < kTileColumns ? x.group_size : kTileColumns) {
    TileConfig config;
    config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(columns_);
    config.rows[6] = static_cast<uint8_t>(columns_ / 4);
    Tiles::Configure(config);
  }
  ~TileInt() { Tiles::Release(); }
  TileInt(const TileInt&) = delete;
  TileInt& operator=(const TileInt&) = delete;

  void Multiply(const IntBlock& block, int64_t count, int64_t num_rows) {
    for (int64_t r = 0; r < count; ++r) MultiplyTileRow(RowsFrom(block, r), num_rows);
  }

 private:
  static constexpr int64_t kTileColumns = 64;

  void MultiplyTileRow(const IntBlock& block, int64_t num_rows) {
    const ActivationRows& x = *block.x;
    const int64_t group_bytes = x.group_size / (kBits == 8 ? 4 : 8) * kIntLineBytes;
    std::memset(block.sums, 0, num_rows * kTileN * sizeof(float));
    for (int64_t group = 0; group < x.num_groups; ++group) {
      const int64_t offset = group * group_bytes, left = block.lines * kIntLineBytes - offset;
      const int64_t num_bytes = left < group_bytes ? left : group_bytes;
      const uint8_t* w = block.w + offset;
      int64_t columns = num_bytes / 16;  // of 16 weight rows
      if (kBits == 4) {
        Widen(w, num_bytes);
        w = widened_;
        columns *= 2;
      }
      for (int64_t row = 0; row < num_rows; row += kRowMultiple) {
        MultiplyTokens(x, w, columns, row, group);
        AddTokens(block, row, num_rows - row, group);
      }
    }
  }

  // Lines of int4 as twice as many lines of bytes.
  void Widen(const uint8_t* w, int64_t num_bytes) {
    for (int64_t i = 0; i < num_bytes; i += kIntLineBytes) {
      const Nibbles nibbles = Split(LoadBytes(w + i));
      _mm512_store_si512(widened_ + 2 * i, nibbles.low);
      _mm512_store_si512(widened_ + 2 * i + kIntLineBytes, nibbles.high);
    }
  }

  // The group's sums of 16 tokens from `row` on, of each plane.
  void MultiplyTokens(const ActivationRows& x, const uint8_t* w, int64_t columns, int64_t row,
                      int64_t group) {
    const IntElement* values = x.Values(row) + group * x.group_size;
    Tiles::template Zero<0>();
    if (P == 2) Tiles::template Zero<1>();
    for (int64_t k = 0; k < columns; k += columns_, w += columns_ * kTileN) {
      Tiles::template Load<6>(w, kIntLineBytes);
      Tiles::template Load<4>(values + k, x.row_stride);
      Tiles::template DotSignedUnsigned<0, 4, 6>();
      if (P == 2) Tiles::template Load<5>(values + x.plane_stride + k, x.row_stride);
      if (P == 2) Tiles::template DotSignedUnsigned<1, 5, 6>();
    }
    Tiles::template Store<0>(ints_[0], kIntLineBytes);
    if (P == 2) Tiles::template Store<1>(ints_[1], kIntLineBytes);
  }

  void AddTokens(const IntBlock& block, int64_t row, int64_t count, int64_t group) const {
    const ActivationRows& x = *block.x;
    const float* w_scales = block.w_scales + group * (kAffine ? block.w_scales_step : kTileN);
    IntVec zeros;
    if constexpr (kAffine) zeros = LoadRowZeros<kBits>(block.zeros + group * block.zeros_step);
    for (int64_t t = 0; t < kRowMultiple && t < count; ++t) {
      const int32_t* corrections = x.Corrections(group, row + t);
      IntVec planes[P];
      for (int p = 0; p < P; ++p) {
        IntVec correction;
        if constexpr (kAffine) {
          correction = TimesZeros(zeros, corrections[p]);
        } else {
          correction = SetInt(corrections[p]);
        }
        planes[p] = AddInt(_mm512_load_si512(ints_[p][t]), correction);
      }
      const IntVec sum = P == 2 ? JoinPlanes(planes[0], planes[P - 1]) : planes[0];
      AddGroup<kBits, kAffine>(sum, x.Scales(group, row + t)[0], w_scales,
                               block.sums + (row + t) * kTileN);
    }
  }

  int64_t columns_;
  alignas(64) int32_t ints_[P][kRowMultiple][kTileN];
  alignas(64) uint8_t widened_[2 * kIntTileBytes];
};

}  // namespace glm::GLM_ISA
