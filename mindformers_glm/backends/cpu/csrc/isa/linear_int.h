// Linear layers on integer weights: y = x . W^T with activations rounded to 8 or 16 bits.
//
// A group of a row's activations has one scale, the weights of the group another (int8: of the whole
// row). Products within a group are integers and exact; the groups' sums are scaled and added in
// float32, in ascending order of k. A row's result therefore does not depend on what else is in the
// batch.
//
// `kAffine`: each group of weights has a zero point besides its scale, also of int8. The sum of a
// group's activations is known already, so zero points are one product of each group.
#pragma once

#include <omp.h>

#include <algorithm>

#include "../kernel_table.h"
#include "../scratch.h"
#include "linear.h"
#include "linear_int_dot.h"
#include "linear_int_float.h"
#include "quantize_activations.h"
#include "quantize_rows.h"

namespace glm::GLM_ISA {

// The scale of each int8 weight row.
inline void ScaleSums(float* sums, int64_t num_rows, const float* w_scales) {
  const Vec scale = Load(w_scales);
  for (int64_t row = 0; row < num_rows; ++row) {
    Store(sums + row * kTileN, Mul(Load(sums + row * kTileN), scale));
  }
}

// The scale of each row of activations, where one holds for all of its groups.
inline void ScaleTokens(float* sums, int64_t num_rows, const float* row_factors) {
  for (int64_t row = 0; row < num_rows; ++row) {
    Store(sums + row * kTileN, Mul(Load(sums + row * kTileN), Set1(row_factors[row])));
  }
}

// Sums of `count` tile rows and all tokens, by dot products.
template <int kBits, int P, bool kAffine = false>
struct DotInt {
  static constexpr int64_t kRowMultiple = 1;  // rows that sums have room for
  static constexpr bool kInTiles = false;     // activations, see ActivationRows
  static constexpr int kTokens = kIntBlockTokens / P;

  static int64_t GroupSize(int64_t) { return 4; }  // tile rows at once

  explicit DotInt(const ActivationRows&) {}

  // Inlined by gcc 12 into LinearIntWith it is 6 % slower, and MindSpore between the operators too.
  __attribute__((noinline)) void Multiply(const IntBlock& block, int64_t count, int64_t num_rows) {
    int64_t r = 0;
    if (num_rows > 1) {
      for (; r + kIntBlockRows <= count; r += kIntBlockRows) {
        MultiplyTileRows<kBits, P, kIntBlockRows, kTokens, kAffine>(RowsFrom(block, r), num_rows);
      }
    } else if (TakesStreams()) {
      for (; r + kSingleTokenRows <= count; r += kSingleTokenRows) {
        MultiplyTileRows<kBits, P, kSingleTokenRows, 1, kAffine>(RowsFrom(block, r), num_rows);
      }
    }
    for (; r < count; ++r) {
      MultiplyTileRows<kBits, P, 1, kTokens, kAffine>(RowsFrom(block, r), num_rows);
    }
  }
};

// Zero points of symmetric int8, wherever a group's are looked for.
alignas(64) constexpr uint8_t kMiddleOfBytes[kTileN] = {128, 128, 128, 128, 128, 128, 128, 128,
                                                        128, 128, 128, 128, 128, 128, 128, 128};

template <class Kernel, int kBits, bool kAffine = false>
inline void LinearIntWith(const LinearIntArgs& args) {
  static thread_local Scratch sum_scratch, range_scratch, float_scratch, factor_scratch;
  static thread_local ActivationRows x;
  const LinearArgs& linear = args.linear;
  const int64_t rows_per_unit = linear.is_gated ? 2 : 1;  // tile rows that belong together
  const int64_t num_units = linear.num_tiles / rows_per_unit;
  const int64_t tiles_k = CeilDiv(linear.k, IntTileK(kBits));
  const int64_t row_blocks = CeilDiv(linear.num_rows, Kernel::kRowMultiple);
  const int64_t sums_stride = row_blocks * Kernel::kRowMultiple * kTileN;
  const int num_threads = NumThreads(linear);
  const int64_t group = Kernel::GroupSize(linear.num_tiles / num_threads);
  const bool has_groups = args.group_size > 0;
  // Where zero points differ, the activations' negative sums are kept as they are.
  x.Reserve(linear, args.activation_bits, has_groups ? args.group_size : kActivationGroup,
            kAffine ? 1 : kBits == 8 ? kByteZero : 8, sums_stride / kTileN, Kernel::kInTiles);
  x.order = args.order;
  float* all_sums = sum_scratch.Reserve<float>(num_threads * group * sums_stride);
  const bool has_tokens = args.activation_scale == ActivationScale::kToken;
  const int64_t padded_k = CeilDiv(linear.k, kActivationGroup) * kActivationGroup;
  float* floats = float_scratch.Reserve<float>(has_tokens ? num_threads * padded_k : 0);
  float* factors = factor_scratch.Reserve<float>(has_tokens ? linear.num_rows : 0);
  const ActivationRows* rows = &x;
  const WorkRanges ranges(range_scratch, num_threads, [&](int64_t thread) {
    return FirstUnit(num_units, thread, num_threads) * rows_per_unit;
  });

#pragma omp parallel num_threads(num_threads)
  {
    const int64_t thread = omp_get_thread_num();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < linear.num_rows; ++row) {
      if (has_tokens) {
        QuantizeToken(*rows, args, row, floats + thread * padded_k, factors);
      } else {
        rows->Quantize(linear, row);
      }
    }

    Kernel kernel(*rows);
    IntBlock block{};
    block.w_stride = tiles_k * kIntTileBytes;
    block.w_scales_stride = has_groups ? rows->num_groups * kTileN : kTileN;
    block.w_scales_step = has_groups ? kTileN : 0;
    block.zeros = kMiddleOfBytes;
    if (args.zeros != nullptr) {
      block.zeros_stride = block.w_scales_stride;
      block.zeros_step = block.w_scales_step;
    }
    block.x = rows;
    block.lines = block.w_stride / kIntLineBytes;
    block.sums_stride = sums_stride;
    block.sums = all_sums + thread * group * sums_stride;
    for (;;) {
      const auto part = ranges.Take(thread, group);
      if (part.begin == part.end) break;
      for (int64_t first = part.begin; first < part.end; first += group) {
        const int64_t count = std::min(part.end - first, group);
        block.w = static_cast<const uint8_t*>(linear.tiles) + first * block.w_stride;
        block.w_scales = args.scales + first * block.w_scales_stride;
        if (args.zeros != nullptr) block.zeros = args.zeros + first * block.zeros_stride;
        kernel.Multiply(block, count, linear.num_rows);
        for (int64_t r = 0; r < count; r += rows_per_unit) {
          float* sums = block.sums + r * sums_stride;
          if (kBits == 8 && !kAffine) {
            for (int64_t i = 0; i < rows_per_unit; ++i) {
              ScaleSums(sums + i * sums_stride, linear.num_rows,
                        block.w_scales + (r + i) * kTileN);
            }
          }
          for (int64_t i = 0; has_tokens && i < rows_per_unit; ++i) {
            ScaleTokens(sums + i * sums_stride, linear.num_rows, factors);
          }
          WriteOutputs(linear, (first + r) / rows_per_unit * kTileN, sums,
                       linear.is_gated ? sums + sums_stride : nullptr);
        }
      }
    }
  }
}

inline bool IsAffine(const LinearIntArgs& args) {
  return args.zeros != nullptr || (args.weight_bits == 8 && args.group_size > 0);
}

inline void LinearIntAffine(const LinearIntArgs& args) {
  constexpr int kPlanes = NumPlanes(16);
  args.weight_bits == 8 ? LinearIntWith<DotInt<8, kPlanes, true>, 8, true>(args)
                        : LinearIntWith<DotInt<4, kPlanes, true>, 4, true>(args);
}

inline void LinearInt(const LinearIntArgs& args) {
  if (args.activation_bits == 32) return LinearIntFloat(args);
  if (IsAffine(args)) return LinearIntAffine(args);
  const bool has_planes = NumPlanes(args.activation_bits) == 2;
  if (args.weight_bits == 8) {
    has_planes ? LinearIntWith<DotInt<8, 2>, 8>(args) : LinearIntWith<DotInt<8, 1>, 8>(args);
  } else {
    has_planes ? LinearIntWith<DotInt<4, 2>, 4>(args) : LinearIntWith<DotInt<4, 1>, 4>(args);
  }
}

}  // namespace glm::GLM_ISA
