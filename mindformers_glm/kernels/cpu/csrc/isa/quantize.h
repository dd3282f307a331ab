// Rounds one weight row to integers with their scales and puts it into its place in the tiles.
#pragma once

#include <cstring>
#include <type_traits>

#include "../kernel_table.h"
#include "convert.h"

namespace glm::GLM_ISA {

constexpr float kLeastWeightScale = 0x1p-23f;
constexpr int64_t kQuantizeColumns = 128;  // at once

inline Vec Magnitude(const Vec& a) { return Max(a, Mul(a, Set1(-1.0f))); }

// absmax / largest of `count` elements; an infinity or a NaN makes the scale one.
template <typename Src>
inline float WeightScale(const Src* src, int64_t count, float largest) {
  Vec most = Zero(), not_finite = Zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadPartial(src + i, count - i < kLanes ? count - i : kLanes);
    most = Max(Magnitude(v), most);
    not_finite = MulAdd(v, Zero(), not_finite);
  }
  const float scale = Largest(most) / largest + Sum(not_finite);
  return scale < kLeastWeightScale ? kLeastWeightScale : scale;
}

// `count` elements as integers: symmetric, to the nearest, ties to even; zeros where the scale is
// not a number. Writes whole vectors.
template <typename Src>
inline void QuantizeWeights(const Src* src, int64_t count, float scale, int32_t* out) {
  const bool is_number = scale - scale == 0.0f;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadPartial(src + i, count - i < kLanes ? count - i : kLanes);
    StoreInts(out + i, is_number ? RoundToInt(Div(v, Set1(scale))) : SetInt(0));
  }
}

// Puts `count` columns (a multiple of 4 or 8), the first in the line at `line`, into their lines.
template <int kBits>
inline void PackColumns(const int32_t* ints, int64_t count, uint8_t* line) {
  constexpr int64_t kLineK = kBits == 8 ? 4 : 8;
  for (int64_t k = 0; k < count; k += kLineK, line += kIntLineBytes) {
    uint32_t word = 0;
    for (int c = 0; c < 4; ++c) {
      const int32_t byte =
          kBits == 8 ? ints[k + c] + 128 : (ints[k + c] + 8) | (ints[k + c + 4] + 8) << 4;
      word |= static_cast<uint32_t>(byte) << 8 * c;  // little endian, as all our targets are
    }
    std::memcpy(line, &word, sizeof(word));
  }
}

template <int kBits, typename Src>
inline void QuantizeRowAs(const QuantizeRowArgs& args) {
  constexpr int64_t kLineK = kBits == 8 ? 4 : 8;
  const Src* src = static_cast<const Src*>(args.src);
  const int64_t padded_k = CeilDiv(args.k, IntTileK(kBits)) * IntTileK(kBits);
  if (kBits == 8) *args.scales = WeightScale(src, args.k, 127.0f);
  for (int64_t begin = 0; begin < padded_k; begin += kQuantizeColumns) {
    alignas(64) int32_t ints[kQuantizeColumns] = {};
    const int64_t left = args.k - begin;
    const int64_t count = left < kQuantizeColumns ? left : kQuantizeColumns;
    if (kBits == 8) QuantizeWeights(src + begin, count, *args.scales, ints);
    for (int64_t i = 0; kBits == 4 && i < kQuantizeColumns; i += args.group_size) {
      const int64_t in_group = count - i < args.group_size ? count - i : args.group_size;
      float& scale = args.scales[(begin + i) / args.group_size * kTileN];
      scale = WeightScale(src + begin + i, in_group, 7.0f);
      QuantizeWeights(src + begin + i, in_group, scale, ints + i);
    }
    const int64_t room = padded_k - begin;
    PackColumns<kBits>(ints, room < kQuantizeColumns ? room : kQuantizeColumns,
                       args.tiles + begin / kLineK * kIntLineBytes);
  }
}

inline void QuantizeRow(const QuantizeRowArgs& args) {
  WithTypes(args.src_dtype, DType::kF32, [&](auto* from, auto*) {
    using Src = std::remove_pointer_t<decltype(from)>;
    args.weight_bits == 8 ? QuantizeRowAs<8, Src>(args) : QuantizeRowAs<4, Src>(args);
  });
}

}  // namespace glm::GLM_ISA
