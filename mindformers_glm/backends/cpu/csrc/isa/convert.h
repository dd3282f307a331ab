// Conversion of contiguous elements, and packing of weight rows into tiles.
#pragma once

#include <type_traits>

#include "../kernel_table.h"

namespace glm::GLM_ISA {

template <typename Dst, typename Src>
inline void ConvertElements(Dst* dst, const Src* src, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(dst + i, Load(src + i));
  if (i < count) StorePartial(dst + i, LoadPartial(src + i, count - i), count - i);
}

// Columns [0, count) of up to 16 rows to `tile`, from its weight row first_row on; what is missing
// of the 32 columns becomes zero, as products with it must not change a sum.
template <typename Dst, typename Src>
inline void PackTile(Dst* tile, int64_t first_row, const Src* src, int64_t src_stride,
                     int64_t num_rows, int64_t count) {
  for (int64_t column = 0; column < kTileK; column += kLanes, count -= kLanes) {
    Vec rows[kTileN];
    for (int64_t r = 0; r < kTileN; ++r) {
      const int64_t bounded = r >= num_rows || count < 0 ? 0 : count < kLanes ? count : kLanes;
      rows[r] = bounded > 0 ? LoadPartial(src + r * src_stride + column, bounded) : Zero();
    }
    Transpose(rows);
    for (int64_t c = 0; c < kLanes; ++c) {
      StorePartial(tile + (column + c) * kTileN + first_row, rows[c], num_rows);
    }
  }
}

// The same for bfloat16, whose pairs of columns stay together and travel as the bits of a float.
template <typename Src>
inline void PackTile(bf16_t* tile, int64_t first_row, const Src* src, int64_t src_stride,
                     int64_t num_rows, int64_t count) {
  bf16_t values[kTileN][kTileK] = {};
  for (int64_t r = 0; r < num_rows; ++r) ConvertElements(values[r], src + r * src_stride, count);
  Vec pairs[kTileN];
  for (int64_t r = 0; r < kTileN; ++r) {
    pairs[r] = Load(reinterpret_cast<const float*>(values[r]));
  }
  Transpose(pairs);
  float* lines = reinterpret_cast<float*>(tile);
  for (int64_t line = 0; line < kTileK / 2; ++line) {
    StorePartial(lines + line * kTileN + first_row, pairs[line], num_rows);
  }
}

// Calls `function` with null pointers of the two element types.
template <typename Function>
inline void WithTypes(DType first, DType second, Function&& function) {
  const auto with_second = [&](auto* a) {
    if (second == DType::kF32) function(a, static_cast<float*>(nullptr));
    if (second == DType::kBF16) function(a, static_cast<bf16_t*>(nullptr));
    if (second == DType::kF16) function(a, static_cast<f16_t*>(nullptr));
  };
  if (first == DType::kF32) with_second(static_cast<float*>(nullptr));
  if (first == DType::kBF16) with_second(static_cast<bf16_t*>(nullptr));
  if (first == DType::kF16) with_second(static_cast<f16_t*>(nullptr));
}

inline void Convert(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t count) {
  if (dst_dtype == src_dtype) {
    std::memcpy(dst, src, count * SizeOf(dst_dtype));
    return;
  }
  WithTypes(dst_dtype, src_dtype, [&](auto* to, auto* from) {
    ConvertElements(static_cast<decltype(to)>(dst),
                    static_cast<const std::remove_pointer_t<decltype(from)>*>(src), count);
  });
}

inline void PackRows(void* dst, DType dst_dtype, int64_t first_row, const void* src,
                     DType src_dtype, int64_t num_rows, int64_t k) {
  WithTypes(dst_dtype, src_dtype, [&](auto* to, auto* from) {
    auto* tile = static_cast<decltype(to)>(dst);
    const auto* values = static_cast<const std::remove_pointer_t<decltype(from)>*>(src);
    for (int64_t column = 0; column < k; column += kTileK, tile += kTileSize) {
      const int64_t count = k - column < kTileK ? k - column : kTileK;
      PackTile(tile, first_row, values + column, k, num_rows, count);
    }
  });
}

}  // namespace glm::GLM_ISA
