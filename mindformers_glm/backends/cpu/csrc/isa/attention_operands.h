// What the two matrix products of attention work on: queries, and a chunk of cached tokens.
#pragma once

#include "../kernel_table.h"

namespace glm::GLM_ISA {

constexpr int kMaxQueries = 64;  // queries that share one pass over K and V
// Cached tokens per step of the softmax. With more, integers are scaled less often.
template <typename T>
constexpr int kChunk = 32;
template <>
constexpr int kChunk<uint8_t> = 64;

// Queries that read one KV head; a lane each.
struct QueryLanes {
  const float* q;  // [padded_dim, num_lanes], scaled; zero where there is no element or query
  const float* const* rows;  // [num_queries], the same of each: [padded_dim]
  const float* positions;    // [num_lanes], in their sequence
  int num_queries;
  int64_t num_lanes;  // num_queries rounded up to whole vectors
};

// Where the keys and values of `count` consecutive tokens lie. The others point to the last of
// these, so that whole blocks can be computed without reading what nobody wrote.
// begin: the position of the first one, or where it would be if there were any.
// places: of a token among all [num_blocks, num_kv_heads, block_size].
template <typename T>
struct Chunk {
  int64_t begin;
  int64_t count;
  int64_t places[kChunk<T>];
  const T* keys[kChunk<T>];
  const T* values[kChunk<T>];
};

// Asks for `count` rows of keys or values.
template <typename T>
inline void PrefetchRows(const T* const* rows, int64_t count, int64_t head_dim) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t d = 0; d < head_dim; d += kLine) Prefetch<64>(rows[t] + d);
  }
}

}  // namespace glm::GLM_ISA
