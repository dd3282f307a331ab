// What each instruction set implements: one table of functions, chosen once (dispatch.cc).
//
// The entry files (linear.cc, attention.cc, ...) check MindSpore's arguments, fill these structs
// and call the table. Implementations trust what they are given.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace glm {

// Weights are packed in tiles of 16 rows and 32 columns, zero padded along k; see pack.cc.
constexpr int64_t kTileN = 16;
constexpr int64_t kTileK = 32;
constexpr int64_t kTileSize = kTileN * kTileK;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct LinearArgs {
  const float* x;  // [num_rows, k]
  int64_t num_rows;
  int64_t k;
  const float* norm_weight;  // [k]; nullptr: x is taken as it is
  const float* norm_bias;    // [k], added behind the norm; nullptr: none
  float eps;
  const void* tiles;  // [num_tiles, ceil(k / 32), 16, 32]
  int64_t num_tiles;
  DType weight_dtype;
  DType compute_dtype;  // what activations are rounded to before products
  int64_t num_split;    // last outputs for which what rounding loses is multiplied, too
  const float* bias;    // [n] or nullptr
  bool is_gated;        // tiles alternate gate, up; the result is silu(gate) * up
  float* y;             // [num_rows, n]
  int64_t n;
};

// Integer weights are packed for products of 4 bytes at a time; see quantize.cc. One line of a tile
// is 64 bytes: 16 weight rows of 4 (int8) or 8 (int4) columns each.
constexpr int64_t kIntTileBytes = 1024;
constexpr int64_t kIntLineBytes = 64;
// Activations are quantized so many columns at a time; beside int8 weights these share a scale,
// beside int4 weights those of a weight group do.
constexpr int64_t kActivationGroup = 128;

// Columns of one tile.
constexpr int64_t IntTileK(int weight_bits) { return weight_bits == 8 ? 64 : 128; }

// How many columns of int4 weights may share a scale.
constexpr bool IsWeightGroup(int64_t size) { return size == 32 || size == 64 || size == 128; }

// What of the activations has one scale: the columns of a weight group; a row; all, by a scale and
// an offset that are given; or a row of a prompt its own and any other row the given one.
enum class ActivationScale { kGroup, kToken, kStatic, kMixed };

struct LinearIntArgs {
  LinearArgs linear;    // without tiles' and products' types
  int weight_bits;      // 8 or 4
  int activation_bits;  // 8, 16, or 32: they stay float32
  const float* scales;    // [num_tiles, groups, 16], of whole 128 columns or of the row
  const uint8_t* zeros;   // as scales: what stands for zero in the tiles; nullptr: half their range
  const int32_t* order;   // [k], the column of x for each of the tiles; nullptr: the same
  int64_t group_size;     // 32, 64 or 128 columns; int8 also 0, the whole row
  ActivationScale activation_scale;
  // kStatic, kMixed: x = clip(rint(x / input_scale + input_offset)), and of the sums of such rows
  // y = (sum + quant_bias) * deq_scales.
  const float* deq_scales;    // [num_tiles, 1, 16]
  const int32_t* quant_bias;  // [num_tiles, 16]
  float input_scale, input_offset;
  const int32_t* is_prompt;  // kMixed: [num_rows], 0 where the given scale is taken
  // kToken, kMixed: [num_rows], the magnitudes that scales of rows are of; nullptr: those of x.
  const float* row_maxima;
};

// One row of a matrix on its way into tiles.
struct QuantizeRowArgs {
  const void* src;  // [k], of any alignment
  DType src_dtype;
  int64_t k;
  int weight_bits;
  int64_t group_size;        // int4 only
  const float* row_maximum;  // int8: the magnitude that decides the scale; nullptr: that of src
  int64_t kept_begin;        // columns before, and from kept_end on, become zeros
  int64_t kept_end;
  uint8_t* tiles;      // the row's first bytes in the first tile of its tile row
  float* scales;       // the row's first scale; the next group's is 16 further
};

struct RmsNormArgs {
  const float* x;         // [num_rows, width]
  const float* weight;    // [width]
  const float* residual;  // [num_rows, width] or nullptr
  float eps;
  float* y;  // [num_rows, width]
  int64_t num_rows;
  int64_t width;
};

// The rows of one step and where each sequence's keys and values lie. Layout:
// backends/cpu/attn_metadata.py.
struct AttnMetadata {
  int64_t num_rows;
  int64_t num_seqs;
  int64_t max_blocks_per_seq;
  const int32_t* positions;
  const int32_t* slot_mapping;
  const int32_t* query_start;
  const int32_t* seq_lens;
  const int32_t* block_tables;
};

// A cache of int8 keeps a byte b for the integer b - kCacheZero.
constexpr int32_t kCacheZero = 128;
// Elements of a head of such a cache: sums of products with 16-bit integers stay below 2^31.
constexpr int64_t kMaxInt8HeadDim = 512;

// What an int8 cache's integers of one channel of a KV head stand for: (integer - offset) * scale.
// [num_kv_heads * head_dim], or nullptr.
struct CacheChannels {
  const float* scale;
  const float* offset;
};

struct AttentionArgs {
  const float* qkv;      // [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]
  const float* cos_sin;  // [num_positions, rotary_dim]
  int64_t rotary_dim;
  void* key_cache;  // [num_blocks, num_kv_heads, block_size, head_dim]
  void* value_cache;
  DType cache_dtype;  // kU8: int8, with scales for each token or for each channel
  float* key_scales;  // [num_blocks, num_kv_heads, block_size], written; or nullptr
  float* value_scales;
  CacheChannels key_channels;
  CacheChannels value_channels;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t block_size;
  AttnMetadata metadata;
  float* y;  // [num_rows, num_heads * head_dim]; nullptr: K and V are written and that is all
};

struct KernelTable {
  const char* name;
  void (*linear)(const LinearArgs&);
  void (*linear_int)(const LinearIntArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*attention)(const AttentionArgs&);
  // `count` elements, contiguous, of any alignment.
  void (*convert)(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t count);
  // src [num_rows, k] to weight rows first_row.. (16 at most) of the tile row at `dst`.
  void (*pack_rows)(void* dst, DType dst_dtype, int64_t first_row, const void* src, DType src_dtype,
                    int64_t num_rows, int64_t k);
  void (*quantize_row)(const QuantizeRowArgs&);
};

// One file chooses its instruction set by `#pragma GCC target`, or by an attribute of clang's. GCC
// 11 is the first that knows all of ours, clang 14 the first that was tried, on x86-64 alone. Where
// the compiler is another, there is the portable table only; dispatch.cc names what is left out.
#if defined(__clang__)
#define GLM_CHOOSES_X86 (__clang_major__ >= 14)
#define GLM_CHOOSES_AARCH64 0
#else
#define GLM_CHOOSES_X86 (__GNUC__ >= 11)
#define GLM_CHOOSES_AARCH64 (__GNUC__ >= 11)
#endif
#if defined(__x86_64__) && GLM_CHOOSES_X86
#define GLM_X86
#elif defined(__aarch64__) && GLM_CHOOSES_AARCH64
#define GLM_AARCH64
#endif

extern const KernelTable kPortableTable;
#if defined(GLM_X86)
extern const KernelTable kAvx2Table;
extern const KernelTable kAvx512Table;
extern const KernelTable kAmxTable;
extern const KernelTable kAmxEmulatedTable;
#endif
#if defined(GLM_AARCH64)
extern const KernelTable kNeonTable;
extern const KernelTable kNeonDotprodTable;
extern const KernelTable kNeonBf16Table;
#endif

// The table in use. Never names an instruction set this machine lacks.
const KernelTable& Kernels();

}  // namespace glm
