// Rounds one weight row to integers with their scales and puts it into its place in the tiles.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../kernel_table.h"
#include "convert.h"
#include "norm.h"

namespace glm::GLM_ISA {

constexpr float kLeastWeightScale = 0x1p-23f;
constexpr int64_t kQuantizeColumns = 128;  // at once

inline float LargestLane(const Vec& a) {
  float lanes[kLanes];
  Store(lanes, a);
  float most = lanes[0];
  for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

inline Vec Magnitude(const Vec& a) { return Max(a, Mul(a, Set1(-1.0f))); }

// The scale of `count` elements: int8 reaches from -127 to 127; in int4 the element of the largest
// magnitude becomes -8. An infinity or a NaN makes the scale one.
template <int kBits, typename Src>
inline float WeightScale(const Src* src, int64_t count) {
  Vec positive = Zero(), negative = Zero(), not_finite = Zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadPartial(src + i, count - i < kLanes ? count - i : kLanes);
    positive = Max(v, positive);
    negative = Max(Mul(v, Set1(-1.0f)), negative);
    not_finite = MulAdd(v, Zero(), not_finite);
  }
  const float most = LargestLane(positive), least = LargestLane(negative);
  const float largest = least >= most ? least : most;
  float scale = kBits == 8 ? largest / 127.0f : largest / (least >= most ? 8.0f : -8.0f);
  scale += Sum(not_finite);
  return std::fabs(scale) < kLeastWeightScale ? kLeastWeightScale : scale;
}

// `count` elements as integers: to the nearest, ties to even, at most kLargest; zeros where the
// scale is not a number. Writes whole vectors.
template <int kBits, typename Src>
inline void QuantizeWeights(const Src* src, int64_t count, float scale, int32_t* out) {
  constexpr float kLargest = kBits == 8 ? 127.0f : 7.0f;
  const bool is_number = scale - scale == 0.0f;
  const Vec minus_scale = Set1(-scale), bound = Set1(-kLargest), minus_one = Set1(-1.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = LoadPartial(src + i, count - i < kLanes ? count - i : kLanes);
    const Vec q = Mul(Max(Div(v, minus_scale), bound), minus_one);
    StoreInts(out + i, is_number ? RoundToInt(q) : SetInt(0));
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
  if (kBits == 8) {
    *args.scales = args.row_maximum == nullptr ? WeightScale<8>(src, args.k)
                                               : WeightScale<8>(args.row_maximum, 1);
  }
  for (int64_t begin = 0; begin < padded_k; begin += kQuantizeColumns) {
    alignas(64) int32_t ints[kQuantizeColumns] = {};
    const int64_t left = args.k - begin;
    const int64_t count = left < kQuantizeColumns ? left : kQuantizeColumns;
    if (kBits == 8) QuantizeWeights<8>(src + begin, count, *args.scales, ints);
    for (int64_t i = 0; kBits == 4 && i < kQuantizeColumns; i += args.group_size) {
      const int64_t in_group = count - i < args.group_size ? count - i : args.group_size;
      float& scale = args.scales[(begin + i) / args.group_size * kTileN];
      scale = WeightScale<4>(src + begin + i, in_group);
      QuantizeWeights<4>(src + begin + i, in_group, scale, ints + i);
    }
    const bool is_kept = args.kept_begin <= begin && begin + count <= args.kept_end;
    for (int64_t i = 0; !is_kept && i < count; ++i) {
      if (begin + i < args.kept_begin || begin + i >= args.kept_end) ints[i] = 0;
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
