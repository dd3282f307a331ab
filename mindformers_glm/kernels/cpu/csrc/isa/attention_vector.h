// The two matrix products of attention, K . q and probabilities . V, on vectors of floats.
//
// Every sum is one chain of multiply-adds in the order of its index, in whichever layout and block
// it is computed. So a query's result does not depend on the queries beside it.
#pragma once

#include "../kernel_table.h"
#include "attention_operands.h"

namespace glm::GLM_ISA {

constexpr int kFewQueries = 8;  // up to here the lanes of K . q are tokens instead of queries
static_assert(kChunk % kScoreKeys == 0 && kChunk % kLanes == 0, "a chunk is whole blocks of keys");

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
 public:
  // Floats that a thread needs.
  static int64_t BufferSize(int64_t padded_dim) { return padded_dim * kLanes; }

  VectorProducts(int64_t head_dim, int64_t padded_dim, float* buffer)
      : head_dim_(head_dim), padded_dim_(padded_dim), keys_(buffer) {}

  // scores [kChunk, num_lanes] = K . q for the tokens of the chunk; further rows may be written.
  // Meanwhile the keys of the next chunk are fetched, a few at a time: the processor does not guess
  // where its blocks lie, and forgets requests that come too fast.
  void Score(const QueryLanes& queries, const Chunk<T>& chunk, const Chunk<T>& next,
             float* scores) const {
    if (queries.num_queries <= kFewQueries) {
      for (int64_t t = 0; t < chunk.count; t += kLanes) {
        ScoreTokenLanes(queries, chunk.keys + t, scores + t * queries.num_lanes);
        PrefetchRows(next.keys + t, kLanes, head_dim_);
      }
      return;
    }
    for (int64_t t = 0; t < chunk.count; t += kScoreKeys) {
      WidenKeys(chunk.keys + t);
      PrefetchRows(next.keys + t, kScoreKeys, head_dim_);
      float* out = scores + t * queries.num_lanes;
      int64_t lane = 0;
      for (; lane + kScoreVecs * kLanes <= queries.num_lanes; lane += kScoreVecs * kLanes) {
        ScoreQueryLanes<kScoreVecs>(queries, lane, out);
      }
      for (; lane < queries.num_lanes; lane += kLanes) ScoreQueryLanes<1>(queries, lane, out);
    }
  }

  // sums [num_queries, padded_dim] += probabilities [count, num_lanes]^T . V, while the values of
  // the next chunk are fetched.
  void AddValues(const QueryLanes& queries, const Chunk<T>& chunk, const Chunk<T>& next,
                 const float* probabilities, float* sums) const {
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

  // keys_ becomes [kScoreKeys, padded_dim].
  void WidenKeys(const T* const* keys) const {
    const int64_t head_dim = head_dim_, stride = padded_dim_;
    float* out = keys_;
    for (int t = 0; t < kScoreKeys; ++t, out += stride) {
      const T* key = keys[t];
      int64_t d = 0;
      for (; d + kLanes <= head_dim; d += kLanes) Store(out + d, Load(key + d));
      if (d < head_dim) Store(out + d, LoadPartial(key + d, head_dim - d));
    }
  }

  template <int V>
  void ScoreQueryLanes(const QueryLanes& queries, int64_t lane, float* scores) const {
    Vec acc[kScoreKeys][V];
    MultiplyBlock(keys_, padded_dim_, 1, queries.q + lane, queries.num_lanes, head_dim_, acc);
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
    int64_t d = 0, fetched = 0;
    for (; d + V * kLanes <= head_dim_; d += V * kLanes) {
      if (query == 0) {
        const int64_t end = (d + V * kLanes) * kChunk / padded_dim_;
        PrefetchRows(next.values + fetched, end - fetched, head_dim_);
        fetched = end;
      }
      AddValueBlock<Q, V, true>(chunk, probabilities, queries.num_lanes, d, sums + d);
    }
    for (; d + kLanes <= head_dim_; d += kLanes) {
      AddValueBlock<Q, 1, true>(chunk, probabilities, queries.num_lanes, d, sums + d);
    }
    if (d < head_dim_) {
      AddValueBlock<Q, 1, false>(chunk, probabilities, queries.num_lanes, d, sums + d);
    }
  }

  // Q queries, and V vectors of the head from d on, or what is left of one. Values are widened
  // as they are used: that
  // costs no time beside so many products, writing them down would.
  template <int Q, int V, bool kIsWhole>
  void AddValueBlock(const Chunk<T>& chunk, const float* probabilities, int64_t num_lanes,
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
  float* keys_;  // [kScoreKeys, padded_dim] or [padded_dim, kLanes]
};

}  // namespace glm::GLM_ISA
