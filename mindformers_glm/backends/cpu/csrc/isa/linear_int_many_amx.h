// Linear layers on integer weights with AMX tiles for many tokens, where products are the limit and
// not memory: signed activations times signed weights.
//
// A thread multiplies a panel of weights by all tokens, which lie in tiles, too. Four tiles hold
// sums: two tile rows times the two planes of 16 tokens, or times 32 tokens of one plane. A group's
// sums are stored beside the first products of the next group and scaled beside those of the one
// after that, since tiles and vectors work at the same time. They are integers as those of the dot
// products are, and scaled in the same order, so both give the same bits.
#pragma once

#include <algorithm>

#include "../kernel_table.h"
#include "linear_int.h"
#include "linear_int_amx.h"
#include "tiles_amx.h"
#include "weight_panel_amx.h"

namespace glm::GLM_ISA {

// By planes. Fewer tokens wait for the weights to come from memory, which a panel would hold up.
constexpr int64_t kLeastPanelTokens[3] = {0, 128, 64};

template <class Tiles, int kBits, int P, bool kAffine = false>
class PanelInt {
 public:
  static constexpr int64_t kRowMultiple = 2 * kTiledRows / P;  // tokens at once
  static constexpr bool kInTiles = true;

  // Tile rows at once, an even number, of those that a thread has.
  static int64_t GroupSize(int64_t tile_rows) {
    return std::min(std::max<int64_t>(tile_rows / 2 * 2, 2), Panel::kTileRows);
  }

  // Groups of 32 columns take half of a tile's.
  explicit PanelInt(const ActivationRows& x)
      : x_(x), columns_(std::min(x.group_size, kTiledColumns)) {
    TileConfig config;
    config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(columns_);
    config.rows[6] = config.rows[7] = static_cast<uint8_t>(columns_ / 4);
    Tiles::Configure(config);
  }
  ~PanelInt() { Tiles::Release(); }
  PanelInt(const PanelInt&) = delete;
  PanelInt& operator=(const PanelInt&) = delete;

  void Multiply(const IntBlock& block, int64_t count, int64_t num_rows) {
    for (int64_t r = 0; r < count; ++r) {
      std::memset(block.sums + r * block.sums_stride, 0, num_rows * kTileN * sizeof(float));
    }
    sums_stride_ = block.sums_stride;
    w_scales_stride_ = block.w_scales_stride;
    zeros_stride_ = block.zeros_stride;
    const int64_t most = Panel::kColumns / x_.group_size;
    const int64_t num_parts = CeilDiv(num_rows, kRowMultiple) * CeilDiv(count, 2);
    for (int64_t group = 0; group < x_.num_groups; group += most) {
      const int64_t end = std::min(x_.num_groups, group + most);
      panel_.Fill(block, count, group, end - group);
      Fetch fetch(block, count, end, num_parts);
      for (int64_t row = 0; row < num_rows; row += kRowMultiple) {
        const int64_t num_tokens = std::min(num_rows - row, kRowMultiple);
        for (int64_t r = 0; r < count; r += 2) {
          fetch.Next();
          MultiplyPart(block, r, count - r, row, num_tokens, group, end);
        }
      }
    }
    AddLastGroups();
  }

 private:
  using Panel = WeightPanel<kBits, kAffine>;
  using Sums = int32_t[4][kTiledRows][kTileN];

  // The weights that come behind the group `end`, or of the next tile rows: a piece of them is
  // fetched into the second-level cache beside each of `num_parts` parts of the products.
  class Fetch {
   public:
    Fetch(const IntBlock& block, int64_t count, int64_t end, int64_t num_parts)
        : w_stride_(block.w_stride) {
      constexpr int64_t kLineK = kBits == 8 ? 4 : 8;
      const ActivationRows& x = *block.x;
      const bool is_end = end == x.num_groups;
      w_ = block.w + (is_end ? count * w_stride_ : end * x.group_size / kLineK * kIntLineBytes);
      row_lines_ = Panel::kColumns / kLineK;
      num_lines_ = count * row_lines_;
      step_ = CeilDiv(num_lines_, num_parts);
    }

    void Next() {
      for (const int64_t end = std::min(done_ + step_, num_lines_); done_ < end; ++done_) {
        const int64_t row = done_ / row_lines_, line = done_ % row_lines_;
        Prefetch<kIntLineBytes>(w_ + row * w_stride_ + line * kIntLineBytes);
      }
    }

   private:
    const uint8_t* w_;
    int64_t w_stride_, row_lines_, num_lines_, step_, done_ = 0;
  };

  // Where the sums of a group belong: of one or two tile rows and some tokens.
  struct Part {
    float* sums;
    const float* w_scales;
    const uint8_t* zeros;
    const float* x_scales;
    const int32_t* corrections;
    int64_t num_tokens, num_tile_rows;
  };

  // Tile row r of the panel and, if there is one, the next, times some tokens, in some groups.
  void MultiplyPart(const IntBlock& block, int64_t r, int64_t num_tile_rows, int64_t row,
                    int64_t num_tokens, int64_t group, int64_t end) {
    const uint8_t* w = panel_.TileRow(r);
    for (; group < end; ++group, w += x_.group_size * kTileN) {
      MultiplyGroup(w, row, group);
      // Field by field: a copy of all would wait for the fields to reach the cache, and these for
      // the tiles that are stored before.
      Part& part = parts_[num_done_++ % 2];
      part.sums = block.sums + r * block.sums_stride + row * kTileN;
      part.w_scales = block.w_scales + r * block.w_scales_stride +
                      group * (kAffine ? block.w_scales_step : kTileN);
      part.zeros = block.zeros + r * block.zeros_stride + group * block.zeros_step;
      part.x_scales = x_.Scales(group, row);
      part.corrections = x_.Corrections(group, row);
      part.num_tokens = num_tokens;
      part.num_tile_rows = num_tile_rows;
    }
  }

  // Sums of tile row r and left operand a, a plane or 16 tokens, are in tile 2 a + r. Where there
  // is one tile row only, the second is what the panel has left from before, and is not added.
  void MultiplyGroup(const uint8_t* w, int64_t row, int64_t group) {
    constexpr int64_t kTile = kTiledRows * kTiledColumns;
    const int64_t group_size = x_.group_size, column = group * group_size;
    const IntElement* x = x_.Tile(row, column) + column % kTiledColumns;
    const IntElement* second = x + kTiledRows * (P == 2 ? x_.plane_stride : x_.row_stride);
    const int slot = num_done_ % 2;
    auto& stored = ints_[1 - slot];
    Tiles::template Load<4>(x, kTiledColumns);
    Tiles::template Load<6>(w, kIntLineBytes);
    Tiles::template Store<0>(stored[0], kIntLineBytes);
    Tiles::template Zero<0>();
    Tiles::template DotSigned<0, 4, 6>();
    Tiles::template Load<7>(w + Panel::kTileRowBytes, kIntLineBytes);
    Tiles::template Store<1>(stored[1], kIntLineBytes);
    Tiles::template Zero<1>();
    Tiles::template DotSigned<1, 4, 7>();
    Tiles::template Load<5>(second, kTiledColumns);
    Tiles::template Store<2>(stored[2], kIntLineBytes);
    Tiles::template Zero<2>();
    Tiles::template DotSigned<2, 5, 6>();
    Tiles::template Store<3>(stored[3], kIntLineBytes);
    Tiles::template Zero<3>();
    Tiles::template DotSigned<3, 5, 7>();
    if (num_done_ >= 2) AddTileRow(parts_[slot], ints_[slot], 0);
    if (group_size > columns_) {
      Tiles::template Load<4>(x + kTile, kTiledColumns);
      Tiles::template Load<6>(w + kTile, kIntLineBytes);
      Tiles::template DotSigned<0, 4, 6>();
      Tiles::template Load<7>(w + kTile + Panel::kTileRowBytes, kIntLineBytes);
      Tiles::template DotSigned<1, 4, 7>();
      Tiles::template Load<5>(second + kTile, kTiledColumns);
      Tiles::template DotSigned<2, 5, 6>();
      Tiles::template DotSigned<3, 5, 7>();
    }
    if (num_done_ >= 2) AddTileRow(parts_[slot], ints_[slot], 1);
  }

  // The sums of the last group but one, and of the last.
  void AddLastGroups() {
    const int slot = num_done_ % 2;
    auto& stored = ints_[1 - slot];
    Tiles::template Store<0>(stored[0], kIntLineBytes);
    Tiles::template Store<1>(stored[1], kIntLineBytes);
    Tiles::template Store<2>(stored[2], kIntLineBytes);
    Tiles::template Store<3>(stored[3], kIntLineBytes);
    for (int r = 0; num_done_ >= 2 && r < 2; ++r) AddTileRow(parts_[slot], ints_[slot], r);
    for (int r = 0; num_done_ >= 1 && r < 2; ++r) AddTileRow(parts_[1 - slot], stored, r);
    num_done_ = 0;
  }

  void AddTileRow(const Part& part, const Sums& ints, int r) const {
    if (r >= part.num_tile_rows) return;
    IntVec rest = SetInt(0);
    if constexpr (kAffine) rest = Panel::RestOfZeros(part.zeros + r * zeros_stride_);
    if (kAffine && _mm512_test_epi32_mask(rest, rest) != 0) {
      AddTokens<true>(part, rest, ints, r, part.num_tokens);
    } else if (part.num_tokens == kRowMultiple) {
      AddTokens<false>(part, rest, ints, r, kRowMultiple);
    } else {
      AddTokens<false>(part, rest, ints, r, part.num_tokens);
    }
  }

  // Both planes' corrections of a token, the high one's in the upper half; these have 16 bits.
  static void JoinCorrections(const int32_t* planes, int64_t num_tokens, int32_t* joined) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      joined[t] = static_cast<int32_t>(static_cast<uint32_t>(planes[2 * t]) << 16 |
                                       (static_cast<uint32_t>(planes[2 * t + 1]) & 0xffffu));
    }
  }

  // A tile row's sums: of two planes, or of the first and the next 16 tokens.
  template <bool kHasZeros>
  [[gnu::always_inline]] void AddTokens(const Part& part, IntVec zeros, const Sums& ints, int r,
                                        int64_t num_tokens) const {
    const float* w_scales = part.w_scales + r * w_scales_stride_;
    const float* x_scales = part.x_scales;
    alignas(64) int32_t corrections[kTiledRows];
    if constexpr (kHasZeros) JoinCorrections(part.corrections, num_tokens, corrections);
    float* sums = part.sums + r * sums_stride_;
    const auto &first = ints[r], &second = ints[2 + r];
#pragma GCC unroll 4
    for (int64_t t = 0; t < num_tokens; ++t) {
      IntVec sum;
      if constexpr (P == 2) {
        sum = JoinPlanes(LoadInts(first[t]), LoadInts(second[t]));
        if constexpr (kHasZeros) sum = AddInt(sum, TimesZeros(zeros, corrections[t]));
      } else {
        sum = LoadInts(t < kTiledRows ? first[t] : second[t - kTiledRows]);
      }
      AddGroup<kBits, kAffine>(sum, x_scales[t], w_scales, sums + t * kTileN);
    }
  }

  const ActivationRows& x_;
  const int64_t columns_;
  int64_t sums_stride_ = 0, w_scales_stride_ = 0, zeros_stride_ = 0;
  int64_t num_done_ = 0;  // groups multiplied
  Part parts_[2];         // the last two
  alignas(64) Sums ints_[2];
  Panel panel_;
};

template <class Tiles, int kBits, int P, bool kAffine = false>
inline void LinearIntTiles(const LinearIntArgs& args) {
  if (args.linear.num_rows < kLeastPanelTokens[P]) {
    LinearIntWith<TileInt<Tiles, kBits, P, kAffine>, kBits, kAffine>(args);
  } else {
    LinearIntWith<PanelInt<Tiles, kBits, P, kAffine>, kBits, kAffine>(args);
  }
}

template <class Tiles>
inline void LinearIntAmx(const LinearIntArgs& args) {
  const bool has_planes = args.activation_bits == 16;
  if (args.linear.num_rows < kLeastTileTokens || args.activation_bits == 32) {
    kAvx512Table.linear_int(args);
  } else if (IsAffine(args)) {
    constexpr int kPlanes = NumPlanes(16);
    args.weight_bits == 8 ? LinearIntTiles<Tiles, 8, kPlanes, true>(args)
                          : LinearIntTiles<Tiles, 4, kPlanes, true>(args);
  } else if (args.weight_bits == 8) {
    has_planes ? LinearIntTiles<Tiles, 8, 2>(args) : LinearIntTiles<Tiles, 8, 1>(args);
  } else {
    has_planes ? LinearIntTiles<Tiles, 4, 2>(args) : LinearIntTiles<Tiles, 4, 1>(args);
  }
}

}  // namespace glm::GLM_ISA
