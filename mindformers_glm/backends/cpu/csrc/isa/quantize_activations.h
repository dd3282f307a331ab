// Rows of activations as integers: for each group of columns a scale, and symmetric integers of 8
// or 16 bits.
#pragma once

#include "../kernel_table.h"
#include "../scratch.h"
#include "norm.h"
#include "quantize.h"

namespace glm::GLM_ISA {

// Two signed bytes, 256 * high + low, reach from -32639 to 32639 alike.
constexpr float kMaxActivation8 = 127.0f, kMaxActivation16 = 32639.0f;
// Groups below count as zero: the inverse of their scale would leave the range of float32.
constexpr float kLeastActivation = 0x1p-100f;

// Where tile registers multiply them: rows and columns of a tile.
constexpr int64_t kTiledRows = 16, kTiledColumns = 64;

// Quantized activations of all rows, each filled up with zeros to whole groups of 128.
struct ActivationRows {
  Scratch value_scratch, scale_scratch, correction_scratch;
  IntElement* values = nullptr;    // [rows][planes][columns], or in tiles
  float* scales = nullptr;         // [num_groups][rows]
  int32_t* corrections = nullptr;  // [num_groups][rows][planes]: -zero point * sum of the group
  int64_t plane_stride = 0;        // a row's planes follow each other, and so do the rows
  int64_t row_stride = 0;
  bool in_tiles = false;  // [rows / 16][planes][columns / 64][16][64], as tile registers take them
  int64_t num_rows = 0;
  const int32_t* order = nullptr;  // [k], as that of LinearIntArgs
  int64_t group_size = 0;  // columns that share a scale: those of int4 weights do so too
  int64_t num_groups = 0;
  int num_planes = 0;
  int32_t zero_point = 0;
  float largest = 0.0f;

  void Reserve(const LinearArgs& args, int activation_bits, int64_t columns_per_group,
               int32_t zero, int64_t row_room, bool tiled = false) {
    const int64_t padded_k = CeilDiv(args.k, kActivationGroup) * kActivationGroup;
    in_tiles = tiled;
    // An odd number of cache lines: rows at a distance of a power of 2 would drive each other out
    // of the cache.
    constexpr int64_t kLine = 64 / sizeof(IntElement);
    num_rows = args.num_rows;
    num_planes = NumPlanes(activation_bits);
    plane_stride = (padded_k / kLine | 1) * kLine;
    if (in_tiles) plane_stride = padded_k + kTiledColumns;  // of 16 rows an odd number of tiles
    row_stride = num_planes * plane_stride;
    group_size = columns_per_group;
    num_groups = padded_k / columns_per_group;
    zero_point = zero;
    largest = activation_bits == 8 ? kMaxActivation8 : kMaxActivation16;
    values = value_scratch.Reserve<IntElement>(row_room * row_stride);
    scales = scale_scratch.Reserve<float>(args.num_rows * num_groups);
    corrections = correction_scratch.Reserve<int32_t>(args.num_rows * num_planes * num_groups);
  }

  const IntElement* Values(int64_t row) const { return values + row * row_stride; }
  // The tile that begins with `row`, a multiple of 16, and has `column`, of the first plane; those
  // of the next are kTiledRows * plane_stride further.
  const IntElement* Tile(int64_t row, int64_t column) const {
    return Values(row) + column / kTiledColumns * kTiledRows * kTiledColumns;
  }
  // Of the rows from `row` on, and of their planes.
  const float* Scales(int64_t group, int64_t row) const { return scales + group * num_rows + row; }
  const int32_t* Corrections(int64_t group, int64_t row) const {
    return corrections + (group * num_rows + row) * num_planes;
  }

  // The planes of 128 columns of a row.
  void StoreInTiles(const IntElement* line, int64_t row, int64_t begin) const {
    const int64_t in_tile = row % kTiledRows;
    IntElement* tile = values + (row - in_tile) * row_stride + begin * kTiledRows;
    for (int p = 0; p < num_planes; ++p, tile += kTiledRows * plane_stride) {
      for (int64_t i = 0; i < kActivationGroup; i += kTiledColumns) {
        std::memcpy(tile + i * kTiledRows + in_tile * kTiledColumns,
                    line + p * kActivationGroup + i, kTiledColumns * sizeof(IntElement));
      }
    }
  }

  // Normalises (where there is a norm) and quantizes one row.
  void Quantize(const LinearArgs& args, int64_t row) const {
    const float* x = args.x + row * args.k;
    const bool has_norm = args.norm_weight != nullptr;
    const Vec inverse = Set1(has_norm ? InverseRms(x, args.k, args.eps) : 1.0f);
    for (int64_t begin = 0; begin < args.k; begin += kActivationGroup) {
      alignas(64) float columns[kActivationGroup];
      for (int64_t i = 0; i < kActivationGroup; i += kLanes) {
        const int64_t left = args.k - begin - i;
        const int64_t count = left < 0 ? 0 : left < kLanes ? left : kLanes;
        Vec v = LoadColumns(x, begin + i, count);
        if (has_norm) v = Mul(Mul(v, inverse), LoadColumns(args.norm_weight, begin + i, count));
        if (args.norm_bias != nullptr) v = Add(v, LoadColumns(args.norm_bias, begin + i, count));
        Store(columns + i, v);
      }
      alignas(64) int32_t integers[kActivationGroup];
      for (int64_t i = 0; i < kActivationGroup; i += group_size) {
        const int64_t group = (begin + i) / group_size;
        scales[group * num_rows + row] = QuantizeGroup(columns + i, integers + i);
      }
      IntElement line[2 * kActivationGroup];
      IntElement* out = in_tiles ? line : values + row * row_stride + begin;
      const int64_t stride = in_tiles ? kActivationGroup : plane_stride;
      StoreActivations(integers, out, num_planes, stride);
      if (in_tiles) StoreInTiles(line, row, begin);
      for (int64_t i = 0; i < kActivationGroup; i += group_size) {
        const int64_t group = (begin + i) / group_size;
        for (int p = 0; p < num_planes; ++p) {
          int32_t sum = 0;
          for (int64_t j = i; j < i + group_size; ++j) sum += out[p * stride + j];
          corrections[(group * num_rows + row) * num_planes + p] = -zero_point * sum;
        }
      }
    }
  }

 private:
  // Some columns of a row in the order of the weights'; zeros from `count` on.
  Vec LoadColumns(const float* row, int64_t begin, int64_t count) const {
    if (order == nullptr) return LoadPartial(row + begin, count);
    float gathered[kLanes];
    for (int64_t i = 0; i < count; ++i) gathered[i] = row[order[begin + i]];
    return LoadPartial(gathered, count);
  }

  // Writes the integers of one group and returns its scale.
  float QuantizeGroup(const float* group, int32_t* integers) const {
    Vec most = Zero(), not_finite = Zero();  // stays zero unless there is an infinity or a NaN
    for (int64_t i = 0; i < group_size; i += kLanes) {
      const Vec v = Load(group + i);
      most = Max(Magnitude(v), most);
      not_finite = MulAdd(v, Zero(), not_finite);
    }
    const float absmax = LargestLane(most) + Sum(not_finite);
    const bool is_number = absmax >= kLeastActivation;
    const Vec inverse_scale = Set1(is_number ? largest / absmax : 0.0f);
    for (int64_t i = 0; i < group_size; i += kLanes) {
      const IntVec rounded = RoundToInt(Mul(Load(group + i), inverse_scale));
      StoreInts(integers + i, is_number ? rounded : SetInt(0));
    }
    // What is not a number makes the scale one, and with it the row's results.
    return absmax < kLeastActivation ? 0.0f : absmax / largest;
  }
};

}  // namespace glm::GLM_ISA
