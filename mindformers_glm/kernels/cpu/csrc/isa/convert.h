// Conversion of contiguous elements, and packing of one weight row into tiles.
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

// Columns beyond k become zero: products with them must not change a sum.
template <typename Dst, typename Src>
inline void PackElements(Dst* dst, const Src* src, int64_t k) {
  for (int64_t begin = 0; begin < k; begin += kTileK, dst += kTileSize) {
    for (int64_t half = 0; half < kTileK; half += kLanes) {
      const int64_t left = k - begin - half;
      const int64_t count = left < 0 ? 0 : left < kLanes ? left : kLanes;
      Store(dst + half, LoadPartial(src + begin + half, count));
    }
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

inline void PackRow(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t k) {
  WithTypes(dst_dtype, src_dtype, [&](auto* to, auto* from) {
    PackElements(static_cast<decltype(to)>(dst),
                 static_cast<const std::remove_pointer_t<decltype(from)>*>(src), k);
  });
}

}  // namespace glm::GLM_ISA
