// One pass over the cache: online softmax of up to kMaxQueries queries of one KV head.
//
// Queries are lanes: the largest score, the sum of probabilities and what hides later tokens are
// found for a vector of queries at a time, each lane on its own.
#pragma once

#include <cstring>
#include <limits>
#include <utility>

#include "../kernel_table.h"
#include "attention_operands.h"
#include "attention_work.h"
#include "softmax_state.h"

namespace glm::GLM_ISA {

// `Products` computes K . q and probabilities . V (attention_vector.h, attention_int8.h). Buffers
// are one thread's own.
template <typename T, template <typename> class Products>
class AttentionPass {
 public:
  // Floats a thread needs; `padded_dim` is head_dim rounded up to whole vectors.
  static int64_t BufferSize(int64_t padded_dim) {
    return (3 * padded_dim + kChunk<T>) * kMaxQueries + Products<T>::BufferSize(padded_dim);
  }

  AttentionPass(const AttentionArgs& args, const float* q, const PartialStates& partials,
                float* buffer)
      : args_(args),
        q_(q),
        partials_(partials),
        padded_dim_(partials.padded_dim),
        lanes_(buffer),
        sums_(lanes_ + padded_dim_ * kMaxQueries),
        merged_sums_(sums_ + padded_dim_ * kMaxQueries),
        scores_(merged_sums_ + padded_dim_ * kMaxQueries),
        products_(args, padded_dim_, scores_ + kChunk<T> * kMaxQueries) {}

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
    int count = 0;
    first_position_ = last_position_ = args_.metadata.positions[item.row_begin];
    for (int64_t row = item.row_begin; row < item.row_end; ++row) {
      const int64_t position = args_.metadata.positions[row];
      first_position_ = position < first_position_ ? position : first_position_;
      last_position_ = position > last_position_ ? position : last_position_;
      for (int64_t head = item.head_begin; head < item.head_end; ++head, ++count) {
        rows_[count] = q_ + (row * args_.num_heads + head) * padded_dim_;
        positions_[count] = static_cast<float>(position);
      }
    }
    queries_ = {lanes_, rows_, positions_, count, CeilDiv(count, kLanes) * kLanes};
    for (int64_t lane = count; lane < queries_.num_lanes; ++lane) positions_[lane] = 0.0f;
    for (int64_t lane = 0; lane < queries_.num_lanes; lane += kLanes) TransposeQueries(lane);
    products_.Take(queries_);
  }

  void TransposeQueries(int64_t lane) {
    for (int64_t d = 0; d < padded_dim_; d += kLanes) {
      Vec block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        block[i] = lane + i < queries_.num_queries ? Load(rows_[lane + i] + d) : Zero();
      }
      Transpose(block);
      for (int i = 0; i < kLanes; ++i) {
        Store(lanes_ + (d + i) * queries_.num_lanes + lane, block[i]);
      }
    }
  }

  // The states of all queries over the split from `split_begin` on.
  void RunSplit(const WorkItem& item, int64_t split_begin) {
    for (int64_t lane = 0; lane < queries_.num_lanes; ++lane) {
      max_[lane] = std::numeric_limits<float>::lowest();
      total_[lane] = 0.0f;
    }
    std::memset(sums_, 0, queries_.num_queries * padded_dim_ * sizeof(float));
    FindTokens(item, split_begin, next_);
    products_.Start(queries_, *next_);
    for (int64_t begin = split_begin; begin <= last_position_ && begin < split_begin + kSplit;
         begin += kChunk<T>) {
      std::swap(chunk_, next_);
      FindTokens(item, begin + kChunk<T>, next_);
      products_.Score(queries_, *chunk_, *next_, scores_);
      for (int64_t lane = 0; lane < queries_.num_lanes; lane += kLanes) {
        if (begin + chunk_->count > first_position_ + 1) HideLaterTokens(lane, begin);
        UpdateSoftmax(lane);
      }
      products_.AddValues(queries_, *chunk_, *next_, scores_, sums_, total_);
    }
  }

  // The chunk of tokens from `begin` on that any query may see; past all of them, the last one.
  void FindTokens(const WorkItem& item, int64_t begin, Chunk<T>* chunk) const {
    const int64_t left = last_position_ + 1 - begin;
    chunk->begin = begin;
    chunk->count = left < kChunk<T> ? left : kChunk<T>;
    const int64_t block_size = args_.block_size, head_dim = args_.head_dim;
    const int32_t* blocks =
        args_.metadata.block_tables + item.seq * args_.metadata.max_blocks_per_seq;
    const int64_t first = left > 0 ? begin : last_position_;
    int64_t index = first / block_size, slot = first % block_size;
    for (int64_t t = 0; t < kChunk<T>; ++t) {
      const int64_t place =
          (blocks[index] * args_.num_kv_heads + item.kv_head) * block_size + slot;
      chunk->places[t] = place;
      chunk->keys[t] = static_cast<const T*>(args_.key_cache) + place * head_dim;
      chunk->values[t] = static_cast<const T*>(args_.value_cache) + place * head_dim;
      if (t + 1 < chunk->count && ++slot == block_size) {
        slot = 0;
        ++index;
      }
    }
  }

  // Scores of tokens beyond a query's own position become minus infinity. Floats hold positions
  // exactly up to 2^24.
  void HideLaterTokens(int64_t lane, int64_t begin) {
    const Vec last = Load(positions_ + lane);
    const Vec hidden = Set1(-std::numeric_limits<float>::infinity());
    for (int64_t t = 0; t < chunk_->count; ++t) {
      float* scores = scores_ + t * queries_.num_lanes + lane;
      const Vec position = Set1(static_cast<float>(begin + t));
      Store(scores, SelectLessEqual(position, last, Load(scores), hidden));
    }
  }

  // Turns the scores of a vector of queries into probabilities relative to the largest so far.
  void UpdateSoftmax(int64_t lane) {
    const int64_t stride = queries_.num_lanes, count = chunk_->count;
    float* scores = scores_ + lane;
    const Vec old_max = Load(max_ + lane);
    Vec max = old_max;
    for (int64_t t = 0; t < count; ++t) max = Max(max, Load(scores + t * stride));
    const Vec shift = Mul(max, Set1(-1.0f));
    Vec total = Zero();
    for (int64_t t = 0; t < count; ++t) {
      const Vec p = Exp(Add(Load(scores + t * stride), shift));
      Store(scores + t * stride, p);
      total = Add(total, p);
    }
    const Vec factor = Exp(Add(old_max, shift));
    Store(max_ + lane, max);
    Store(total_ + lane, MulAdd(Load(total_ + lane), factor, total));
    ScaleSums(lane, factor);
  }

  void ScaleSums(int64_t lane, const Vec& factor) {
    float factors[kLanes];
    Store(factors, factor);
    for (int i = 0; i < kLanes && lane + i < queries_.num_queries; ++i) {
      if (factors[i] == 1.0f) continue;
      float* sums = sums_ + (lane + i) * padded_dim_;
      const Vec scale = Set1(factors[i]);
      for (int64_t d = 0; d < padded_dim_; d += kLanes) {
        Store(sums + d, Mul(Load(sums + d), scale));
      }
    }
  }

  SoftmaxState State(int query) const {
    return {sums_ + query * padded_dim_, max_[query], total_[query]};
  }

  // Adds a split to what the queries that can see it have merged; all see the first.
  void MergeSplit(int64_t split) {
    if (split == 0) {
      for (int i = 0; i < queries_.num_queries; ++i) merged_[i] = State(i);
      std::swap(sums_, merged_sums_);
      return;
    }
    for (int i = 0; i < queries_.num_queries; ++i) {
      if (positions_[i] >= split * kSplit) merged_[i] = Merge(merged_[i], State(i), padded_dim_);
    }
  }

  void WritePartials(int64_t split) const {
    for (int i = 0; i < queries_.num_queries; ++i) {
      if (positions_[i] < split * kSplit) continue;
      partials_.Write((rows_[i] - q_) / padded_dim_, split, State(i));
    }
  }

  void WriteOutputs(const WorkItem& item) const {
    int query = 0;
    for (int64_t row = item.row_begin; row < item.row_end; ++row) {
      for (int64_t head = item.head_begin; head < item.head_end; ++head, ++query) {
        WriteOutput(args_, row, head, merged_[query]);
      }
    }
  }

  const AttentionArgs& args_;
  const float* q_;  // [num_rows, num_heads, padded_dim], rotated and scaled
  const PartialStates partials_;
  const int64_t padded_dim_;
  float* lanes_;        // [padded_dim, num_lanes], q of the queries
  float* sums_;         // [kMaxQueries, padded_dim], of one split
  float* merged_sums_;  // [kMaxQueries, padded_dim], of all splits so far
  float* scores_;       // [kChunk<T>, num_lanes], then the probabilities
  Products<T> products_;
  QueryLanes queries_;
  Chunk<T> chunks_[2];
  Chunk<T>* chunk_ = &chunks_[0];
  Chunk<T>* next_ = &chunks_[1];
  int64_t first_position_, last_position_;  // of the queries
  const float* rows_[kMaxQueries];
  float positions_[kMaxQueries];
  float max_[kMaxQueries];
  float total_[kMaxQueries];
  SoftmaxState merged_[kMaxQueries];
};

}  // namespace glm::GLM_ISA
