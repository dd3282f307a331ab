// RoPE of a step's rows: q to working memory, K and V to the cache.
#pragma once

#include <cmath>
#include <type_traits>

#include "../kernel_table.h"
#include "cache_int8.h"

namespace glm::GLM_ISA {

// Rotates pairs (2i, 2i + 1), i < rotary_dim / 2, as transformers 4.51.3 modeling_glm4
// apply_rotary_pos_emb does; the rest of the head is copied, and everything is scaled.
inline void RotateHead(const float* in, const float* cos_sin, int64_t rotary_dim, int64_t head_dim,
                       float scale, float* out) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float cos = cos_sin[i], sin = cos_sin[half + i];
    const float even = in[2 * i], odd = in[2 * i + 1];
    out[2 * i] = (even * cos - odd * sin) * scale;
    out[2 * i + 1] = (odd * cos + even * sin) * scale;
  }
  for (int64_t i = rotary_dim; i < head_dim; ++i) out[i] = in[i] * scale;
}

inline const float* HeadsOf(const AttentionArgs& args, int64_t row) {
  return args.qkv + row * (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
}

inline const float* CosSinOf(const AttentionArgs& args, int64_t row) {
  return args.cos_sin + args.metadata.positions[row] * args.rotary_dim;
}

// Rotates and scales one row's queries: to `q` [num_heads, padded_dim].
inline void WriteQueries(const AttentionArgs& args, int64_t row, int64_t padded_dim, float* q) {
  const int64_t head_dim = args.head_dim;
  const float* in = HeadsOf(args, row);
  const float* cos_sin = CosSinOf(args, row);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t head = 0; head < args.num_heads; ++head, in += head_dim, q += padded_dim) {
    RotateHead(in, cos_sin, args.rotary_dim, head_dim, scale, q);
    if (args.key_channels.scale != nullptr) {
      // Scales of channels enter here. Their offsets would add the same to all scores of a query,
      // which softmax does not see.
      const int64_t kv_head = head / (args.num_heads / args.num_kv_heads);
      const float* channels = args.key_channels.scale + kv_head * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) q[d] *= channels[d];
    }
    for (int64_t d = head_dim; d < padded_dim; ++d) q[d] = 0.0f;
  }
}

// A head of one token to the cache, rounded to its type.
template <typename T>
inline void StoreRounded(const float* x, int64_t head_dim, T* out) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const int64_t count = head_dim - d < kLanes ? head_dim - d : kLanes;
    const T* rounding = nullptr;
    StorePartial(out + d, Round(LoadPartial(x + d, count), rounding), count);
  }
}

// One row's K, rotated, and V to the cache. `key` [head_dim] is working memory.
template <typename T>
inline void WriteKeyAndValue(const AttentionArgs& args, int64_t row, float* key) {
  const int64_t head_dim = args.head_dim;
  const float* in = HeadsOf(args, row) + args.num_heads * head_dim;
  const float* cos_sin = CosSinOf(args, row);
  const int64_t slot = args.metadata.slot_mapping[row];
  const int64_t block = slot / args.block_size, offset = slot % args.block_size;
  const float* values = in + args.num_kv_heads * head_dim;
  for (int64_t head = 0; head < args.num_kv_heads; ++head, in += head_dim, values += head_dim) {
    const int64_t place = (block * args.num_kv_heads + head) * args.block_size + offset;
    T* key_out = static_cast<T*>(args.key_cache) + place * head_dim;
    T* value_out = static_cast<T*>(args.value_cache) + place * head_dim;
    RotateHead(in, cos_sin, args.rotary_dim, head_dim, 1.0f, key);
    if constexpr (std::is_same_v<T, uint8_t>) {
      StoreInt8(args.key_channels, args.key_scales, place, head, head_dim, key, key_out);
      StoreInt8(args.value_channels, args.value_scales, place, head, head_dim, values, value_out);
    } else {
      StoreRounded(key, head_dim, key_out);
      StoreRounded(values, head_dim, value_out);
    }
  }
}

}  // namespace glm::GLM_ISA
