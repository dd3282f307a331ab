// Loading weights: conversion between float types and packing of matrices into tiles.
//
// A matrix W[N, K] becomes tiles [ceil(N / 16), ceil(K / 32), 16, 32]: 16 lines of 32 elements,
// line r with columns 2 r and 2 r + 1 of 16 weight rows. In bfloat16 a row's two columns lie side
// by side ([16 rows][2 columns]), else one column follows the other ([2 columns][16 rows]). So a
// line is one or two vectors that are multiplied by one token's activations, and a bfloat16 tile is
// the right operand of an AMX product: the same bytes feed decode and prefill. A gated pair
// alternates: tile row t of the gate at 2t, of the up projection at 2t + 1.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"

namespace glm {
namespace {

DType CheckedDType(int value) {
  Expect(value >= 0 && value <= static_cast<int>(DType::kF16), "unknown element type");
  return static_cast<DType>(value);
}

}  // namespace
}  // namespace glm

// Packs src[rows, k] to rows row_offset.. of the packed matrix at `dst`. Its t-th group of 16 rows
// is tile row t * tile_stride + tile_first: (1, 0) for a plain matrix, (2, 0) for a gate, (2, 1)
// for an up projection. The caller has checked that `dst` is large enough. `src` may be unaligned.
GLM_EXPORT int glm_pack_rows(void* dst, int dst_dtype, const void* src, int src_dtype, int64_t rows,
                             int64_t k, int64_t row_offset, int64_t tile_stride,
                             int64_t tile_first) {
  return glm::RunAot("glm_pack_rows", [&] {
    const glm::DType to = glm::CheckedDType(dst_dtype), from = glm::CheckedDType(src_dtype);
    glm::Expect(dst != nullptr && src != nullptr, "called without data");
    glm::Expect(rows >= 0 && k >= 0 && row_offset >= 0 && tile_stride > 0 && tile_first >= 0,
                "called with a negative size");
    const int64_t tiles_k = glm::CeilDiv(k, glm::kTileK);
    const int64_t first_group = row_offset / glm::kTileN;
    const int64_t end = row_offset + rows, end_group = glm::CeilDiv(end, glm::kTileN);
    const glm::KernelTable& kernels = glm::Kernels();
#pragma omp parallel for schedule(static) if (rows * k > 65536)
    for (int64_t group = first_group; group < end_group; ++group) {
      const int64_t group_begin = group * glm::kTileN;
      const int64_t begin = std::max(group_begin, row_offset);
      const int64_t count = std::min(group_begin + glm::kTileN, end) - begin;
      const int64_t element = (group * tile_stride + tile_first) * tiles_k * glm::kTileSize;
      const int64_t src_element = (begin - row_offset) * k;
      kernels.pack_rows(static_cast<char*>(dst) + element * glm::SizeOf(to), to,
                        begin - group_begin,
                        static_cast<const char*>(src) + src_element * glm::SizeOf(from), from,
                        count, k);
    }
  });
}

// Converts `count` elements, rounding to nearest even.
GLM_EXPORT int glm_convert(void* dst, int dst_dtype, const void* src, int src_dtype,
                           int64_t count) {
  return glm::RunAot("glm_convert", [&] {
    const glm::DType to = glm::CheckedDType(dst_dtype), from = glm::CheckedDType(src_dtype);
    glm::Expect((dst != nullptr && src != nullptr) || count == 0, "called without data");
    const glm::KernelTable& kernels = glm::Kernels();
    constexpr int64_t kPart = 1 << 16;
#pragma omp parallel for schedule(static) if (count > kPart)
    for (int64_t begin = 0; begin < count; begin += kPart) {
      const int64_t part = count - begin < kPart ? count - begin : kPart;
      kernels.convert(static_cast<char*>(dst) + begin * glm::SizeOf(to), to,
                      static_cast<const char*>(src) + begin * glm::SizeOf(from), from, part);
    }
  });
}
