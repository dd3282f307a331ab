// RoPE, KV cache write and causal attention over a paged cache.
//
// Every query (one head of one row) goes through the keys in chunks from position 0 on, with an
// online softmax in float32 (Milakov and Gimelshein 2018, arXiv:1805.02867), and afresh for every
// kSplit tokens, whose results are then merged in order: where there are fewer items of work than
// threads, the splits of one query go to several ("Flash-Decoding", Dao et al. 2023). Queries that
// read the same KV head are worked on together, but the arithmetic of each is the same whatever
// company it has, so results do not depend on the batch, on chunked prefill or on the number of
// threads.
#pragma once

#include <omp.h>

#include <cmath>
#include <limits>
#include <utility>

#include "../kernel_table.h"
#include "../scratch.h"

namespace glm::GLM_ISA {

constexpr int kChunkVecs = 2;
constexpr int kChunk = kChunkVecs * kLanes;  // cached tokens per step
constexpr int kMaxQueries = 64;              // queries that share one pass over K and V
constexpr int64_t kSplit = 32 * kChunk;      // cached tokens whose softmax is one's own
constexpr int64_t kAllSplits = -1;

// Queries (rows x heads of one group) of one sequence and KV head.
struct WorkItem {
  int64_t seq;
  int64_t kv_head;
  int64_t row_begin, row_end;
  int64_t head_begin, head_end;
  int64_t split;  // or kAllSplits
};

// What a query knows after some tokens: the largest score, the sum of exp(score - max), and the
// values weighted by these, [padded_dim].
struct SoftmaxState {
  float* sums;
  float max;
  float total;
};

// `state` and then `next`, in the place of state's sums. Never inlined: compiled twice, it might be
// rounded in two ways.
[[gnu::noinline]] inline SoftmaxState Merge(SoftmaxState state, SoftmaxState next,
                                            int64_t padded_dim) {
  const float max = next.max > state.max ? next.max : state.max;
  const Vec old_factor = Exp(Set1(state.max - max)), new_factor = Exp(Set1(next.max - max));
  for (int64_t d = 0; d < padded_dim; d += kLanes) {
    const Vec sum = Mul(Load(state.sums + d), old_factor);
    Store(state.sums + d, MulAdd(Load(next.sums + d), new_factor, sum));
  }
  float old_lanes[kLanes], new_lanes[kLanes];
  Store(old_lanes, old_factor);
  Store(new_lanes, new_factor);
  return {state.sums, max, state.total * old_lanes[0] + next.total * new_lanes[0]};
}

// The splits of queries that several threads work on: [num_rows * num_heads, num_splits] states of
// padded_dim sums, max and total.
struct PartialStates {
  float* data;
  int64_t num_splits;
  int64_t padded_dim;

  int64_t StateSize() const { return padded_dim + 2; }
  float* At(int64_t query, int64_t split) const {
    return data + (query * num_splits + split) * StateSize();
  }
  void Write(int64_t query, int64_t split, const SoftmaxState& state) const {
    float* out = At(query, split);
    std::memcpy(out, state.sums, padded_dim * sizeof(float));
    out[padded_dim] = state.max;
    out[padded_dim + 1] = state.total;
  }
  SoftmaxState Read(int64_t query, int64_t split) const {
    float* in = At(query, split);
    return {in, in[padded_dim], in[padded_dim + 1]};
  }
};

// y of one query, `row` and `head`.
inline void WriteOutput(const AttentionArgs& args, int64_t row, int64_t head,
                        const SoftmaxState& state) {
  float* y = args.y + (row * args.num_heads + head) * args.head_dim;
  const Vec inverse = Set1(1.0f / state.total);
  for (int64_t d = 0; d < args.head_dim; d += kLanes) {
    const int64_t left = args.head_dim - d;
    StorePartial(y + d, Mul(Load(state.sums + d), inverse), left < kLanes ? left : kLanes);
  }
}

// y of one query whose splits are all there.
inline void MergePartials(const AttentionArgs& args, const PartialStates& partials, int64_t row,
                          int64_t head) {
  const int64_t query = row * args.num_heads + head;
  SoftmaxState state = partials.Read(query, 0);
  const int64_t last = args.metadata.positions[row] / kSplit;
  for (int64_t split = 1; split <= last; ++split) {
    state = Merge(state, partials.Read(query, split), partials.padded_dim);
  }
  WriteOutput(args, row, head, state);
}

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

// One pass over the cache for up to kMaxQueries queries; buffers are one thread's own.
template <typename T>
class AttentionPass {
 public:
  // Floats a thread needs; `padded_dim` is head_dim rounded up to whole vectors.
  static int64_t BufferSize(int64_t padded_dim) {
    return padded_dim * (2 * kChunk + 2 * kMaxQueries) + kMaxQueries * kChunk;
  }

  AttentionPass(const AttentionArgs& args, const float* q, const PartialStates& partials,
                float* buffer)
      : args_(args),
        q_(q),
        partials_(partials),
        padded_dim_(partials.padded_dim),
        keys_(buffer),
        values_(keys_ + padded_dim_ * kChunk),
        sums_(values_ + padded_dim_ * kChunk),
        merged_sums_(sums_ + padded_dim_ * kMaxQueries),
        scores_(merged_sums_ + padded_dim_ * kMaxQueries) {}

  void Run(const WorkItem& item) {
    CollectQueries(item);
    const bool is_whole = item.split == kAllSplits;
    const int64_t last = is_whole ? last_position_ / kSplit : item.split;
    for (int64_t split = is_whole ? 0 : item.split; split <= last; ++split) {
      RunSplit(item, split * kSplit);
      if (is_whole) {
        MergeSplit(split);
      } else {
        WritePartials(split);
      }
    }
    if (is_whole) WriteOutputs(item);
  }

 private:
  void CollectQueries(const WorkItem& item) {
    num_queries_ = 0;
    last_position_ = -1;
    for (int64_t row = item.row_begin; row < item.row_end; ++row) {
      const int64_t position = args_.metadata.positions[row];
      last_position_ = position > last_position_ ? position : last_position_;
      for (int64_t head = item.head_begin; head < item.head_end; ++head) {
        queries_[num_queries_] = q_ + (row * args_.num_heads + head) * padded_dim_;
        positions_[num_queries_] = position;
        ++num_queries_;
      }
    }
  }

  // The states of all queries over the split from `split_begin` on. Whole in one function, with
  // the members in registers, it is 3 to 8 % faster with AVX-512.
  [[gnu::flatten]] void RunSplit(const WorkItem& item, int64_t split_begin) {
    for (int i = 0; i < num_queries_; ++i) {
      max_[i] = -std::numeric_limits<float>::infinity();
      total_[i] = 0.0f;
    }
    std::memset(sums_, 0, num_queries_ * padded_dim_ * sizeof(float));
    for (int64_t begin = split_begin; begin <= last_position_ && begin < split_begin + kSplit;
         begin += kChunk) {
      const int64_t left = last_position_ + 1 - begin;
      const int64_t count = left < kChunk ? left : kChunk;  // tokens that any query may see
      LoadChunk(item, begin, count);
      for (int i = 0; i < num_queries_; i += kQueryBlock) ScoreBlock(i);
      for (int i = 0; i < num_queries_; ++i) UpdateSoftmax(i, begin);
      AddValues(count);
    }
  }

  // Adds a split to what the queries that can see it have merged; all see the first.
  void MergeSplit(int64_t split) {
    if (split == 0) std::swap(sums_, merged_sums_);
    for (int i = 0; i < num_queries_; ++i) {
      if (split == 0) {
        merged_[i] = {merged_sums_ + i * padded_dim_, max_[i], total_[i]};
      } else if (positions_[i] >= split * kSplit) {
        const SoftmaxState next = {sums_ + i * padded_dim_, max_[i], total_[i]};
        merged_[i] = Merge(merged_[i], next, padded_dim_);
      }
    }
  }

  void WritePartials(int64_t split) const {
    for (int i = 0; i < num_queries_; ++i) {
      if (positions_[i] < split * kSplit) continue;
      const int64_t query = (queries_[i] - q_) / padded_dim_;
      partials_.Write(query, split, {sums_ + i * padded_dim_, max_[i], total_[i]});
    }
  }

  // keys_ becomes [padded_dim, kChunk] (transposed), values_ [kChunk, padded_dim]. Only `count`
  // tokens are read: slots beyond them may hold anything.
  void LoadChunk(const WorkItem& item, int64_t begin, int64_t count) {
    const T* key_rows[kChunk];
    const int64_t block_size = args_.block_size, head_dim = args_.head_dim;
    const int32_t* blocks =
        args_.metadata.block_tables + item.seq * args_.metadata.max_blocks_per_seq;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t position = begin + t, block = blocks[position / block_size];
      const int64_t offset =
          ((block * args_.num_kv_heads + item.kv_head) * block_size + position % block_size) *
          head_dim;
      key_rows[t] = static_cast<const T*>(args_.key_cache) + offset;
      const T* value_row = static_cast<const T*>(args_.value_cache) + offset;
      for (int64_t d = 0; d < padded_dim_; d += kLanes) {
        Store(values_ + t * padded_dim_ + d, LoadPartial(value_row + d, Left(d)));
      }
    }
    for (int part = 0; part < kChunkVecs; ++part) {
      for (int64_t d = 0; d < padded_dim_; d += kLanes) {
        Vec rows[kLanes];
        for (int t = 0; t < kLanes; ++t) {
          const int64_t token = part * kLanes + t;
          rows[t] = token < count ? LoadPartial(key_rows[token] + d, Left(d)) : Zero();
        }
        Transpose(rows);
        for (int i = 0; i < kLanes; ++i) Store(keys_ + (d + i) * kChunk + part * kLanes, rows[i]);
      }
    }
  }

  // Elements of a head from d on, at most one vector's.
  int64_t Left(int64_t d) const {
    const int64_t left = args_.head_dim - d;
    return left < kLanes ? left : kLanes;
  }

  // scores_[query] = q . K of the chunk, for kQueryBlock queries from `first` on. Past the last
  // query the first one is taken again, and its scores go to rows that nobody reads.
  void ScoreBlock(int first) {
    const float* q[kQueryBlock];
    Vec acc[kQueryBlock][kChunkVecs];
    for (int i = 0; i < kQueryBlock; ++i) {
      q[i] = queries_[first + i < num_queries_ ? first + i : first];
      for (int part = 0; part < kChunkVecs; ++part) acc[i][part] = Zero();
    }
    for (int64_t d = 0; d < padded_dim_; ++d) {
      Vec keys[kChunkVecs];
      for (int part = 0; part < kChunkVecs; ++part) {
        keys[part] = Load(keys_ + d * kChunk + part * kLanes);
      }
      for (int i = 0; i < kQueryBlock; ++i) {
        const Vec element = Set1(q[i][d]);
        for (int part = 0; part < kChunkVecs; ++part) {
          acc[i][part] = MulAdd(element, keys[part], acc[i][part]);
        }
      }
    }
    for (int i = 0; i < kQueryBlock; ++i) {
      for (int part = 0; part < kChunkVecs; ++part) {
        Store(scores_ + (first + i) * kChunk + part * kLanes, acc[i][part]);
      }
    }
  }

  // Turns the scores of one query into probabilities relative to the largest score so far, zero
  // beyond its own position.
  void UpdateSoftmax(int query, int64_t begin) {
    float* scores = scores_ + query * kChunk;
    const int64_t visible = positions_[query] + 1 - begin;
    if (visible <= 0) {
      std::memset(scores, 0, kChunk * sizeof(float));
      return;
    }
    constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
    Vec s[kChunkVecs];
    Vec largest = Set1(max_[query]);
    for (int part = 0; part < kChunkVecs; ++part) {
      s[part] = Keep(Load(scores + part * kLanes), visible - part * kLanes, kNegativeInfinity);
      largest = Max(largest, s[part]);
    }
    const float new_max = Largest(largest);
    Vec total = Zero();
    for (int part = 0; part < kChunkVecs; ++part) {
      const Vec p = Exp(Add(s[part], Set1(-new_max)));
      total = Add(total, p);
      Store(scores + part * kLanes, p);
    }
    if (new_max != max_[query]) {
      const Vec factor = Exp(Set1(max_[query] - new_max));
      float* sums = sums_ + query * padded_dim_;
      for (int64_t d = 0; d < padded_dim_; d += kLanes)
        Store(sums + d, Mul(Load(sums + d), factor));
      float first_lane[kLanes];
      Store(first_lane, factor);
      total_[query] *= first_lane[0];
      max_[query] = new_max;
    }
    total_[query] += Sum(total);
  }

  // sums_ += probabilities . V of the chunk.
  void AddValues(int64_t count) {
    int query = 0;
    for (; query + kValueQueries <= num_queries_; query += kValueQueries) {
      AddValuesTo<kValueQueries>(query, count);
    }
    for (; query < num_queries_; ++query) AddValuesTo<1>(query, count);
  }

  template <int Q>
  void AddValuesTo(int first, int64_t count) {
    int64_t d = 0;
    for (; d + kValueVecs * kLanes <= padded_dim_; d += kValueVecs * kLanes) {
      AddValueBlock<Q, kValueVecs>(first, count, d);
    }
    for (; d < padded_dim_; d += kLanes) AddValueBlock<Q, 1>(first, count, d);
  }

  template <int Q, int V>
  void AddValueBlock(int first, int64_t count, int64_t d) {
    Vec acc[Q][V];
    for (int i = 0; i < Q; ++i) {
      for (int v = 0; v < V; ++v) {
        acc[i][v] = Load(sums_ + (first + i) * padded_dim_ + d + v * kLanes);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      Vec values[V];
      for (int v = 0; v < V; ++v) values[v] = Load(values_ + t * padded_dim_ + d + v * kLanes);
      for (int i = 0; i < Q; ++i) {
        const Vec p = Set1(scores_[(first + i) * kChunk + t]);
        for (int v = 0; v < V; ++v) acc[i][v] = MulAdd(p, values[v], acc[i][v]);
      }
    }
    for (int i = 0; i < Q; ++i) {
      for (int v = 0; v < V; ++v) {
        Store(sums_ + (first + i) * padded_dim_ + d + v * kLanes, acc[i][v]);
      }
    }
  }

  void WriteOutputs(const WorkItem& item) {
    int query = 0;
    for (int64_t row = item.row_begin; row < item.row_end; ++row) {
      for (int64_t head = item.head_begin; head < item.head_end; ++head, ++query) {
        WriteOutput(args_, row, head, merged_[query]);
      }
    }
  }

  const AttentionArgs& args_;
  const float* q_;
  const PartialStates partials_;
  const int64_t padded_dim_;
  float* keys_;
  float* values_;
  float* sums_;         // [kMaxQueries, padded_dim], of one split
  float* merged_sums_;  // [kMaxQueries, padded_dim], of all splits so far
  float* scores_;       // [kMaxQueries, kChunk]
  int num_queries_ = 0;
  int64_t last_position_ = -1;
  const float* queries_[kMaxQueries];
  int64_t positions_[kMaxQueries];
  float max_[kMaxQueries];
  float total_[kMaxQueries];
  SoftmaxState merged_[kMaxQueries];
};

// Rotates one row's heads: q (scaled) to `q` [num_heads, padded_dim], K and V to the cache.
// `key` [padded_dim] is working memory.
template <typename T>
inline void WriteRow(const AttentionArgs& args, int64_t row, int64_t padded_dim, float* q,
                     float* key) {
  const int64_t head_dim = args.head_dim;
  const float* in = args.qkv + row * (args.num_heads + 2 * args.num_kv_heads) * head_dim;
  const float* cos_sin = args.cos_sin + args.metadata.positions[row] * args.rotary_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t head = 0; head < args.num_heads; ++head, in += head_dim, q += padded_dim) {
    RotateHead(in, cos_sin, args.rotary_dim, head_dim, scale, q);
    for (int64_t d = head_dim; d < padded_dim; ++d) q[d] = 0.0f;
  }
  const int64_t slot = args.metadata.slot_mapping[row];
  const int64_t block = slot / args.block_size, offset = slot % args.block_size;
  const float* values = in + args.num_kv_heads * head_dim;
  for (int64_t head = 0; head < args.num_kv_heads; ++head, in += head_dim, values += head_dim) {
    const int64_t place =
        ((block * args.num_kv_heads + head) * args.block_size + offset) * head_dim;
    T* key_out = static_cast<T*>(args.key_cache) + place;
    T* value_out = static_cast<T*>(args.value_cache) + place;
    RotateHead(in, cos_sin, args.rotary_dim, head_dim, 1.0f, key);
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const int64_t count = head_dim - d < kLanes ? head_dim - d : kLanes;
      const T* rounding = nullptr;
      StorePartial(key_out + d, Round(LoadPartial(key + d, count), rounding), count);
      StorePartial(value_out + d, Round(LoadPartial(values + d, count), rounding), count);
    }
  }
}

// Splits of the longest query among some rows.
inline int64_t NumSplits(const AttentionArgs& args, int64_t row_begin, int64_t row_end) {
  int64_t last = 0;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t position = args.metadata.positions[row];
    last = position > last ? position : last;
  }
  return last / kSplit + 1;
}

// Splits a step into items of at most kMaxQueries queries, and further by cached tokens and by
// heads where asked for. `items` may be nullptr to count only.
inline int64_t ListWork(const AttentionArgs& args, bool is_split, int64_t head_parts,
                        WorkItem* items) {
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t part = CeilDiv(group, head_parts);
  const int64_t heads = part < kMaxQueries ? part : kMaxQueries;
  const int64_t rows = kMaxQueries / heads;
  int64_t count = 0;
  for (int64_t seq = 0; seq < args.metadata.num_seqs; ++seq) {
    const int64_t end = args.metadata.query_start[seq + 1];
    for (int64_t row = args.metadata.query_start[seq]; row < end; row += rows) {
      for (int64_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head) {
        for (int64_t head = 0; head < group; head += heads) {
          const int64_t first_head = kv_head * group;
          WorkItem item = {seq,
                           kv_head,
                           row,
                           row + rows < end ? row + rows : end,
                           first_head + head,
                           first_head + (head + heads < group ? head + heads : group),
                           is_split ? 0 : kAllSplits};
          const int64_t num_splits = is_split ? NumSplits(args, item.row_begin, item.row_end) : 1;
          for (int64_t split = 0; split < num_splits; ++split, ++count) {
            if (is_split) item.split = split;
            if (items != nullptr) items[count] = item;
          }
        }
      }
    }
  }
  return count;
}

template <typename T>
inline void AttentionWith(const AttentionArgs& args) {
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
  const int64_t pass_size = AttentionPass<T>::BufferSize(padded_dim);
  float* buffers = pass_scratch.Reserve<float>(num_threads * pass_size);

#pragma omp parallel num_threads(num_threads)
  {
    float* key = q + q_size + omp_get_thread_num() * padded_dim;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
      WriteRow<T>(args, row, padded_dim, q + row * args.num_heads * padded_dim, key);
    }
    AttentionPass<T> pass(args, q, partials, buffers + omp_get_thread_num() * pass_size);
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

inline void Attention(const AttentionArgs& args) {
  if (args.cache_dtype == DType::kF32) {
    AttentionWith<float>(args);
  } else if (args.cache_dtype == DType::kBF16) {
    AttentionWith<bf16_t>(args);
  } else {
    AttentionWith<f16_t>(args);
  }
}

}  // namespace glm::GLM_ISA
