// The two matrix products of attention, K . q and probabilities . V, on vectors of floats.
//
// Every sum is one chain of multiply-adds in the order of its index, in whichever layout and block
// it is computed. So a query's result does not depend on the queries beside it.
#pragma once

#include <utility>

#include "../kernel_table.h"
#include "attention_operands.h"

namespace glm::GLM_ISA {

constexpr int kFewQueries = 8;  // up to here the lanes of K . q are tokens instead of queries

// acc[r][v] = sum over d < depth of a[r * a_row + d * a_step] * b[d * b_step + v * kLanes], lane by
// lane of b. Always inlined: acc stays in registers only where the compiler sees its caller.
template <int R, int V>
[[gnu::always_inline]] inline void MultiplyBlock(const float* a, int64_t a_row, int64_t a_step,
                                                 const float* b, int64_t b_step, int64_t depth,
                                                 Vec (&acc)[R][V]) {
  for (auto& row : acc) {
    for (Vec& sum : row) sum = Zero();
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec right[V];
    for (int v = 0; v < V; ++v) right[v] = Load(b + d * b_step + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec left = Set1(a[r * a_row + d * a_step]);
      for (int v = 0; v < V; ++v) acc[r][v] = MulAdd(left, right[v], acc[r][v]);
    }
  }
}

template <typename T>
class VectorProducts {
  static_assert(kChunk<T> % kScoreKeys == 0 && kChunk<T> % kLanes == 0,
                "a chunk is whole blocks of keys");

 public:
  // Floats that a thread needs.
  static int64_t BufferSize(int64_t padded_dim) {
    return padded_dim * (kLanes > 2 * kScoreKeys ? kLanes : 2 * kScoreKeys);
  }

  VectorProducts(const AttentionArgs& args, int64_t padded_dim, float* buffer)
      : head_dim_(args.head_dim), padded_dim_(padded_dim), buffer_(buffer) {}

  // Called once for queries; there is nothing to prepare.
  void Take(const QueryLanes&) {}

  // Makes ready for Score of `chunk` and those that follow it.
  void Start(const QueryLanes& queries, const Chunk<T>& chunk) {
    keys_ = buffer_;
    next_keys_ = buffer_ + kScoreKeys * padded_dim_;
    if (queries.num_queries <= kFewQueries) return;
    for (int64_t d = 0; d < padded_dim_; d += kLanes) WidenKeys(chunk.keys, d, next_keys_);
  }

  // scores [kChunk<T>, num_lanes] = K . q for the tokens of the chunk, which Start or the call before
  // had as `next`; further rows may be written.
  // Beside the products of some keys, the following ones are widened, and those of the next chunk
  // are fetched: the processor does not guess where its blocks lie.
  void Score(const QueryLanes& queries, const Chunk<T>& chunk, const Chunk<T>& next,
             float* scores) {
    if (queries.num_queries <= kFewQueries) {
      for (int64_t t = 0; t < chunk.count; t += kLanes) {
        ScoreTokenLanes(queries, chunk.keys + t, scores + t * queries.num_lanes);
        PrefetchRows(next.keys + t, kLanes, head_dim_);
      }
      return;
    }
    for (int64_t t = 0; t < chunk.count; t += kScoreKeys) {
      std::swap(keys_, next_keys_);
      const bool is_last = t + kScoreKeys >= chunk.count;
      const T* const* following = is_last ? next.keys : chunk.keys + t + kScoreKeys;
      const T* const* fetched = next.keys + t;
      float* widened = next_keys_;
      const auto widen_next = [=](int64_t d) {
        WidenKeys(following, d, widened);
        for (int key = 0; key < kScoreKeys; ++key) Prefetch<64>(fetched[key] + d);
      };
      const auto nothing = [](int64_t) {};
      float* out = scores + t * queries.num_lanes;
      int64_t lane = kScoreVecs * kLanes;
      if (lane <= queries.num_lanes) {
        ScoreQueryLanes<kScoreVecs>(queries, 0, widen_next, out);
      } else {
        lane = kLanes;
        ScoreQueryLanes<1>(queries, 0, widen_next, out);
      }
      for (; lane + kScoreVecs * kLanes <= queries.num_lanes; lane += kScoreVecs * kLanes) {
        ScoreQueryLanes<kScoreVecs>(queries, lane, nothing, out);
      }
      for (; lane < queries.num_lanes; lane += kLanes) {
        ScoreQueryLanes<1>(queries, lane, nothing, out);
      }
    }
  }

  // sums [num_queries, padded_dim] += probabilities [count, num_lanes]^T . V, while the values of
  // the next chunk are fetched.
  void AddValues(const QueryLanes& queries, const Chunk<T>& chunk, const Chunk<T>& next,
                 const float* probabilities, float* sums, float* /*totals*/) const {
    int query = 0;
    for (; query + kManyQueries <= queries.num_queries; query += kManyQueries) {
      AddValuesTo<kManyQueries, 1>(queries, query, chunk, next, probabilities, sums);
    }
    for (; query + kValueQueries <= queries.num_queries; query += kValueQueries) {
      AddValuesTo<kValueQueries, kValueVecs>(queries, query, chunk, next, probabilities, sums);
    }
    for (; query < queries.num_queries; ++query) {
      AddValuesTo<1, kValueVecs>(queries, query, chunk, next, probabilities, sums);
    }
  }

 private:
  // Elements of a head from d on, at most one vector's.
  int64_t Left(int64_t d) const {
    const int64_t left = head_dim_ - d;
    return left < kLanes ? left : kLanes;
  }

  // A vector of each of kScoreKeys keys from d on, to `out` [padded_dim / kLanes, kScoreKeys,
  // kLanes].
  void WidenKeys(const T* const* keys, int64_t d, float* out) const {
    const bool is_whole = d + kLanes <= head_dim_;
    for (int i = 0; i < kScoreKeys; ++i) {
      const Vec key = is_whole ? Load(keys[i] + d) : LoadPartial(keys[i] + d, head_dim_ - d);
      Store(out + d * kScoreKeys + i * kLanes, key);
    }
  }

  // Scores of kScoreKeys keys. Calls beside(d) before the products of each vector of a head: what
  // waits for memory costs little there.
  template <int V, typename Beside>
  [[gnu::always_inline]] void ScoreQueryLanes(const QueryLanes& queries, int64_t lane,
                                              Beside beside, float* scores) const {
    const int64_t stride = queries.num_lanes, padded_dim = padded_dim_;
    const float* q = queries.q + lane;
    const float* keys = keys_;
    Vec acc[kScoreKeys][V];
#pragma GCC unroll 16  // otherwise gcc 12 clears memory instead of registers
    for (auto& row : acc) {
#pragma GCC unroll 4
      for (Vec& sum : row) sum = Zero();
    }
    for (int64_t d = 0; d < padded_dim; d += kLanes, keys += kScoreKeys * kLanes) {
      beside(d);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i, q += stride) {
        Vec right[V];
        for (int v = 0; v < V; ++v) right[v] = Load(q + v * kLanes);
        for (int t = 0; t < kScoreKeys; ++t) {
          const Vec left = Set1(keys[t * kLanes + i]);
          for (int v = 0; v < V; ++v) acc[t][v] = MulAdd(left, right[v], acc[t][v]);
        }
      }
    }
    for (int t = 0; t < kScoreKeys; ++t) {
      for (int v = 0; v < V; ++v) {
        Store(scores + t * queries.num_lanes + lane + v * kLanes, acc[t][v]);
      }
    }
  }

  // Where queries are few, most of their lanes would be idle: here kLanes tokens are the lanes, at
  // the price of transposing keys and scores.
  void ScoreTokenLanes(const QueryLanes& queries, const T* const* keys, float* scores) const {
    for (int64_t d = 0; d < padded_dim_; d += kLanes) {
      Vec rows[kLanes];
      for (int t = 0; t < kLanes; ++t) rows[t] = LoadPartial(keys[t] + d, Left(d));
      Transpose(rows);
      for (int i = 0; i < kLanes; ++i) Store(keys_ + (d + i) * kLanes, rows[i]);
    }
    Vec rows[kLanes];
    for (Vec& row : rows) row = Zero();
    constexpr int kBlock = 4;
    for (int query = 0; query < queries.num_queries; query += kBlock) {
      Vec acc[kBlock][1];
      MultiplyBlock(queries.q + query, 1, queries.num_lanes, keys_, kLanes, head_dim_, acc);
      for (int i = 0; i < kBlock; ++i) rows[query + i] = acc[i][0];
    }
    Transpose(rows);
    for (int t = 0; t < kLanes; ++t) Store(scores + t * queries.num_lanes, rows[t]);
  }

  template <int Q, int V>
  void AddValuesTo(const QueryLanes& queries, int query, const Chunk<T>& chunk,
                   const Chunk<T>& next, const float* probabilities, float* sums) const {
    probabilities += query;
    sums += query * padded_dim_;
    int64_t d = 0;
    for (; d + V * kLanes <= head_dim_; d += V * kLanes) {
      const T* const* fetched = query == 0 ? next.values : chunk.values;
      AddValueBlock<Q, V, true>(chunk, fetched, probabilities, queries.num_lanes, d, sums + d);
    }
    for (; d + kLanes <= head_dim_; d += kLanes) {
      AddValueBlock<Q, 1, true>(chunk, chunk.values, probabilities, queries.num_lanes, d, sums + d);
    }
    if (d < head_dim_) {
      AddValueBlock<Q, 1, false>(chunk, chunk.values, probabilities, queries.num_lanes, d,
                                 sums + d);
    }
  }

  // Q queries, and V vectors of the head from d on, or what is left of one. Values are widened
  // as they are used: that costs no time beside so many products, writing them down would. Beside
  // them the vectors at the same place of `fetched` are fetched.
  template <int Q, int V, bool kIsWhole>
  [[gnu::always_inline]] void AddValueBlock(const Chunk<T>& chunk, const T* const* fetched,
                                            const float* probabilities, int64_t num_lanes,
                                            int64_t d, float* sums) const {
    const int64_t count = chunk.count, left = head_dim_ - d, stride = padded_dim_;
    Vec acc[Q][V];
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      for (int v = 0; v < V; ++v) acc[i][v] = Load(sums + i * stride + v * kLanes);
    }
    for (int64_t t = 0; t < count; ++t) {
      Vec values[V];
      for (int v = 0; v < V; ++v) {
        const T* value = chunk.values[t] + d + v * kLanes;
        values[v] = kIsWhole ? Load(value) : LoadPartial(value, left);
      }
      Prefetch<V * kLanes * sizeof(T)>(fetched[t] + d);
#pragma GCC unroll 16
      for (int i = 0; i < Q; ++i) {
        const Vec p = Set1(probabilities[t * num_lanes + i]);
        for (int v = 0; v < V; ++v) acc[i][v] = MulAdd(p, values[v], acc[i][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Q; ++i) {
      for (int v = 0; v < V; ++v) Store(sums + i * stride + v * kLanes, acc[i][v]);
    }
  }

  const int64_t head_dim_;
  const int64_t padded_dim_;
  float* buffer_;
  float* keys_;       // [padded_dim / kLanes, kScoreKeys, kLanes] or [padded_dim, kLanes]
  float* next_keys_;  // [padded_dim / kLanes, kScoreKeys, kLanes]
};

}  // namespace glm::GLM_ISA
