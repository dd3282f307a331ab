// Loading weights as integers: round to nearest, and packing into tiles for integer products.
//
// q = w / scale: int8 with one scale a row, absmax / 127; int4 with one for each group of 32, 64 or
// 128 columns, which makes the element of the largest magnitude -8. Stored without sign, q + 128
// and q + 8, since the products want it so. A line of 64 bytes holds 16 rows n:
//
//   int8: byte 4 (n % 16) + c of line k / 4 is column k with c = k % 4; a tile has 64 columns.
//   int4: the same byte of line k / 8, its lower half where k % 8 < 4, the upper half otherwise; a
//         tile has 128 columns.
//
// Sixteen lines are a tile of 1 KiB, tiles of 16 rows follow one another along k: [n / 16][k / 64
// or 128][16][64]. Columns that fill up the last tile hold the zero point. A gated pair alternates
// as in pack.cc.
#include <stdexcept>
#include <string>

#include "aot.h"
#include "kernel_table.h"

// Quantizes src[rows, k] to rows row_offset.. of the packed matrix at `tiles` and `scales`
// (num_groups a row: [tile rows][num_groups][16]). tile_stride, tile_first: see glm_pack_rows. The
// caller has checked that both are large enough. `src` may be unaligned. Where src is a part of a
// larger matrix: row_maxima[rows] are the largest magnitudes of the whole rows, which int8 has its
// scales of (nullptr: src has whole rows); columns outside kept_begin to kept_end count for the
// scales of their groups and become zeros.
GLM_EXPORT int glm_quantize_rows(void* tiles, float* scales, const void* src, int src_dtype,
                                 int bits, int64_t group_size, int64_t rows, int64_t k,
                                 int64_t row_offset, int64_t tile_stride, int64_t tile_first,
                                 const float* row_maxima, int64_t kept_begin, int64_t kept_end) {
  return glm::RunAot("glm_quantize_rows", [&] {
    glm::Expect(src_dtype >= 0 && src_dtype <= static_cast<int>(glm::DType::kF16),
                "unknown element type");
    const glm::DType from = static_cast<glm::DType>(src_dtype);
    glm::Expect(tiles != nullptr && scales != nullptr && src != nullptr, "called without data");
    glm::Expect(rows >= 0 && k >= 0 && row_offset >= 0 && tile_stride > 0 && tile_first >= 0,
                "called with a negative size");
    glm::Expect(bits == 8 || (bits == 4 && glm::IsWeightGroup(group_size)),
                "weights have 8 bits, or 4 in groups of 32, 64 or 128");
    const int64_t tiles_k = glm::CeilDiv(k, glm::IntTileK(bits));
    const int64_t num_groups = bits == 8 ? 1 : tiles_k * glm::IntTileK(bits) / group_size;
    const glm::KernelTable& kernels = glm::Kernels();
#pragma omp parallel for schedule(static) if (rows * k > 65536)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = row_offset + r, in_tile = n % glm::kTileN;
      const int64_t tile_row = n / glm::kTileN * tile_stride + tile_first;
      glm::QuantizeRowArgs args{};
      args.src = static_cast<const char*>(src) + r * k * glm::SizeOf(from);
      args.src_dtype = from;
      args.k = k;
      args.row_maximum = row_maxima == nullptr ? nullptr : row_maxima + r;
      args.kept_begin = kept_begin;
      args.kept_end = kept_end;
      args.weight_bits = bits;
      args.group_size = group_size;
      args.tiles = static_cast<uint8_t*>(tiles) + tile_row * tiles_k * glm::kIntTileBytes +
                   in_tile * 4;
      args.scales = scales + tile_row * num_groups * glm::kTileN + in_tile;
      kernels.quantize_row(args);
    }
  });
}
