// Loading weights: conversion between float types and packing of matrices into tiles.
//
// A matrix W[N, K] becomes [ceil(N / 16), ceil(K / 32), 16, 32]: element (n, k) lies in tile
// (n / 16, k / 32) at (n % 16, k % 32). One row of a bf16 tile is one 64-byte vector, one tile is
// one AMX tile, so the same bytes feed the dot products of decode and the matrix products of
// prefill. A gated pair alternates: tile row t of the gate at 2t, of the up projection at 2t + 1.
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
    const int64_t tiles_k = (k + glm::kTileK - 1) / glm::kTileK;
    const glm::KernelTable& kernels = glm::Kernels();
#pragma omp parallel for schedule(static) if (rows * k > 65536)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = row_offset + r;
      const int64_t tile_row = n / glm::kTileN * tile_stride + tile_first;
      const int64_t element = tile_row * tiles_k * glm::kTileSize + n % glm::kTileN * glm::kTileK;
      kernels.pack_row(static_cast<char*>(dst) + element * glm::SizeOf(to), to,
                       static_cast<const char*>(src) + r * k * glm::SizeOf(from), from, k);
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
