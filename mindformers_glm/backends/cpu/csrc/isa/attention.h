// RoPE, KV cache write and causal attention over a paged cache: what the threads do in one step.
//
// Every query (one head of one row) goes through the keys in chunks from position 0 on, with an
// online softmax in float32, and afresh for every kSplit tokens. Queries that read the same KV head
// are worked on together, but the arithmetic of each is the same whatever company it has, so
// results do not depend on the batch, on chunked prefill or on the number of threads.
#pragma once

#include <omp.h>

#include "../kernel_table.h"
#include "../scratch.h"
#include "attention_int8.h"
#include "attention_pass.h"
#include "attention_vector.h"
#include "attention_work.h"
#include "rope_and_store.h"
#include "softmax_state.h"

namespace glm::GLM_ISA {

template <typename T>
inline void WriteKeysAndValues(const AttentionArgs& args) {
  static thread_local Scratch key_scratch;
  float* keys = key_scratch.Reserve<float>(omp_get_max_threads() * args.head_dim);
#pragma omp parallel for num_threads(omp_get_max_threads()) schedule(static)
  for (int64_t row = 0; row < args.metadata.num_rows; ++row) {
    WriteKeyAndValue<T>(args, row, keys + omp_get_thread_num() * args.head_dim);
  }
}

template <typename T, template <typename> class Products>
inline void AttentionWith(const AttentionArgs& args) {
  if (args.y == nullptr) return WriteKeysAndValues<T>(args);
  static thread_local Scratch q_scratch, item_scratch, pass_scratch, partial_scratch;
  const int64_t padded_dim = CeilDiv(args.head_dim, kLanes) * kLanes;
  const int64_t num_rows = args.metadata.num_rows;
  const int num_threads = omp_get_max_threads();
  int64_t head_parts = 1;
  int64_t num_items = ListWork(args, false, head_parts, nullptr);
  // Too few items for the threads: by cached tokens first, as heads that are parted read and
  // convert the same keys and values again.
  PartialStates partials = {nullptr, NumSplits(args, 0, num_rows), padded_dim};
  const bool is_split = num_items < num_threads && partials.num_splits > 1;
  if (is_split) {
    partials.data = partial_scratch.Reserve<float>(num_rows * args.num_heads *
                                                   partials.num_splits * partials.StateSize());
    num_items = ListWork(args, is_split, head_parts, nullptr);
  }
  if (num_items < num_threads) {
    head_parts = CeilDiv(num_threads, num_items);
    num_items = ListWork(args, is_split, head_parts, nullptr);
  }
  WorkItem* items = item_scratch.Reserve<WorkItem>(num_items);
  ListWork(args, is_split, head_parts, items);
  const int64_t q_size = num_rows * args.num_heads * padded_dim;
  float* q = q_scratch.Reserve<float>(q_size + num_threads * padded_dim);
  const int64_t pass_size = AttentionPass<T, Products>::BufferSize(padded_dim);
  float* buffers = pass_scratch.Reserve<float>(num_threads * pass_size);

#pragma omp parallel num_threads(num_threads)
  {
    float* key = q + q_size + omp_get_thread_num() * padded_dim;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
      WriteQueries(args, row, padded_dim, q + row * args.num_heads * padded_dim);
      WriteKeyAndValue<T>(args, row, key);
    }
    AttentionPass<T, Products> pass(args, q, partials, buffers + omp_get_thread_num() * pass_size);
    // The last rows of a prompt see most; taking them first evens the threads out.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = num_items - 1; i >= 0; --i) pass.Run(items[i]);
    if (is_split) {
#pragma omp for schedule(static)
      for (int64_t query = 0; query < num_rows * args.num_heads; ++query) {
        MergePartials(args, partials, query / args.num_heads, query % args.num_heads);
      }
    }
  }
}

template <template <typename> class Products>
inline void AttentionOn(const AttentionArgs& args) {
  if (args.cache_dtype == DType::kU8) {
    AttentionWith<uint8_t, IntProducts>(args);
  } else if (args.cache_dtype == DType::kF32) {
    AttentionWith<float, Products>(args);
  } else if (args.cache_dtype == DType::kBF16) {
    AttentionWith<bf16_t, Products>(args);
  } else {
    AttentionWith<f16_t, Products>(args);
  }
}

inline void Attention(const AttentionArgs& args) { AttentionOn<VectorProducts>(args); }

}  // namespace glm::GLM_ISA
