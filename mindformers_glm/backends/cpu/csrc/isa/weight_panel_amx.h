// Weights as tiles of signed bytes: some groups of columns of some tile rows, made by a thread for
// itself and multiplied by many tokens before the next.
#pragma once

#include <algorithm>
#include <cstring>

#include "../kernel_table.h"
#include "linear_int.h"

namespace glm::GLM_ISA {

template <int kBits, bool kAffine>
class WeightPanel {
 public:
  // 128 KiB, in the second-level cache; 8 KiB of two tile rows and as much of the tokens that they
  // are multiplied by stay in the first-level one. Tokens come from afar once for all tile rows.
  static constexpr int64_t kTileRows = 32, kColumns = 256;
  static constexpr int64_t kTileRowBytes = kColumns * kTileN;

  const uint8_t* TileRow(int64_t r) const { return bytes_ + r * kTileRowBytes; }

  // What the bytes of the panel lack of zero points: of int8 what leaves the middle, as a byte
  // holds no more; of int4 what is above 128, where a zero point is no code. From -128 to 127, and
  // as TimesZeros takes it beside the corrections of both planes: for the low one as it is, for the
  // high one 256 times, which has 16 bits still.
  static IntVec RestOfZeros(const uint8_t* zeros) {
    IntVec rest = AddInt(LoadZeros(zeros), SetInt(-128));
    if (kBits == 4) rest = _mm512_max_epi32(rest, SetInt(0));
    return _mm512_or_si512(_mm512_and_si512(rest, SetInt(0xffff)), _mm512_slli_epi32(rest, 24));
  }

  // Groups from `group` on of `count` tile rows; columns that the weights do not have are zeros.
  void Fill(const IntBlock& block, int64_t count, int64_t group, int64_t num_groups) {
    const int64_t group_lines = block.x->group_size / (kBits == 8 ? 4 : 8);
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* out = bytes_ + r * kTileRowBytes;
      const IntBlock rows = RowsFrom(block, r);
      for (int64_t g = group; g < group + num_groups; ++g) {
        const int64_t lines = std::min(block.lines - g * group_lines, group_lines);
        const __m512i zeros = ZerosOfBytes(rows.zeros + g * block.zeros_step);
        FillGroup(rows.w + g * group_lines * kIntLineBytes, lines, zeros, out);
        std::memset(out + lines * kOutBytes, 0, (group_lines - lines) * kOutBytes);
        out += group_lines * kOutBytes;
      }
    }
  }

 private:
  static constexpr int64_t kOutBytes = kBits == 8 ? kIntLineBytes : 2 * kIntLineBytes;  // of a line

  // What is subtracted of each byte; see RestOfZeros.
  static __m512i ZerosOfBytes(const uint8_t* zeros) {
    if (kBits == 8) return _mm512_set1_epi8(-128);
    if (!kAffine) return _mm512_set1_epi8(8);
    const IntVec least = _mm512_min_epi32(LoadZeros(zeros), SetInt(128));
    return _mm512_mullo_epi32(least, SetInt(0x01010101));
  }

  static void FillGroup(const uint8_t* w, int64_t lines, __m512i zeros, uint8_t* out) {
    for (int64_t i = 0; i < lines; ++i, w += kIntLineBytes, out += kOutBytes) {
      if constexpr (kBits == 8) {
        _mm512_store_si512(out, _mm512_sub_epi8(LoadBytes(w), zeros));
      } else {
        const Nibbles nibbles = Split(LoadBytes(w));
        _mm512_store_si512(out, _mm512_sub_epi8(nibbles.low, zeros));
        _mm512_store_si512(out + kIntLineBytes, _mm512_sub_epi8(nibbles.high, zeros));
      }
    }
  }

  alignas(64) uint8_t bytes_[kTileRows * kTileRowBytes];
};

}  // namespace glm::GLM_ISA
