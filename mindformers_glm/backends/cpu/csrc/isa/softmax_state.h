// What is known of a query's softmax after some of its tokens, and how two such states become one.
//
// Every query takes its tokens in splits of kSplit with an online softmax of their own (Milakov and
// Gimelshein 2018, arXiv:1805.02867), merged in order. Where there are fewer items of work than
// threads, the splits of one query go to several ("Flash-Decoding", Dao et al. 2023); the result
// is the same, bit for bit, as the merging is.
#pragma once

#include <cstring>

#include "../kernel_table.h"

namespace glm::GLM_ISA {

constexpr int64_t kSplit = 1024;  // cached tokens whose softmax is one's own

// What a query knows after some tokens: the largest score, the sum of exp(score - max), and the
// values weighted by these, [padded_dim].
struct SoftmaxState {
  float* sums;
  float max;
  float total;
};

// `state` and then `next`, in the place of state's sums.
inline SoftmaxState Merge(SoftmaxState state, SoftmaxState next, int64_t padded_dim) {
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

// What integers of `count` channels from `begin` on stand for, or means of these.
inline Vec FromChannels(const CacheChannels& channels, int64_t begin, int64_t count,
                        const Vec& integers) {
  const Vec offset = Mul(LoadPartial(channels.offset + begin, count), Set1(-1.0f));
  return Mul(Add(integers, offset), LoadPartial(channels.scale + begin, count));
}

// y of one query, `row` and `head`.
inline void WriteOutput(const AttentionArgs& args, int64_t row, int64_t head,
                        const SoftmaxState& state) {
  float* y = args.y + (row * args.num_heads + head) * args.head_dim;
  const Vec inverse = Set1(1.0f / state.total);
  const bool has_channels = args.value_channels.scale != nullptr;
  const int64_t kv_head = head / (args.num_heads / args.num_kv_heads);
  for (int64_t d = 0; d < args.head_dim; d += kLanes) {
    const int64_t left = args.head_dim - d, count = left < kLanes ? left : kLanes;
    Vec out = Mul(Load(state.sums + d), inverse);
    if (has_channels) out = FromChannels(args.value_channels, kv_head * args.head_dim + d, count, out);
    StorePartial(y + d, out, count);
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

}  // namespace glm::GLM_ISA
