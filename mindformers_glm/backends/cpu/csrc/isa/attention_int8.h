// The two matrix products of attention over a cache of int8, K . q and probabilities . V: sums of
// integers, which are exact.
//
// Queries become integers of 16 bits with a scale for each: what they lose is far below what keys
// have lost. The probabilities of a query and a chunk, times the scales of the tokens' values, become
// integers of 8 bits with a scale of their own; of 15 bits, in two planes, for the first tokens of a
// context and the last ones before the query. Most of what counts lies there, and where there is
// nothing else, few tokens' errors do not even out. Products are those of the linear layers on
// integers (dot_int_portable.h), with cached tokens, or elements of a head, in the place of weight
// rows. What a query gets depends on its own numbers, its position and its tokens alone.
#pragma once

#include "../kernel_table.h"
#include "attention_operands.h"
#include "cache_int8.h"

namespace glm::GLM_ISA {

// The largest integers of probabilities: of most tokens, and of those at the ends of a query's
// context.
constexpr float kMaxProbability = 255.0f, kMaxFineProbability = kMaxActivation16;
constexpr int64_t kFineTokens = 512;  // at either end; a multiple of a chunk

template <typename T>
class IntProducts {
  static constexpr int kPlanes = NumPlanes(16);
  static constexpr int kRows = kIntBlockRows;                // tile rows of a block
  static constexpr int64_t kTokens = kChunk<T>;
  static constexpr int64_t kQuad = 4;  // columns of a line
  static constexpr int64_t kTokenTiles = kTokens / kTileN;
  static constexpr int64_t kValueLines = kTokens / kQuad;
  static_assert(kTokens % kTileN == 0 && kTokenTiles % kRows == 0, "a chunk is whole tile rows");
  static_assert(kFineTokens % kTokens == 0);

 public:
  // Floats that a thread needs.
  static int64_t BufferSize(int64_t padded_dim) {
    const Sizes sizes(padded_dim);
    return (sizes.bytes + sizeof(float) - 1) / sizeof(float) + 64 / sizeof(float);
  }

  IntProducts(const AttentionArgs& args, int64_t padded_dim, float* buffer)
      : args_(args), head_dim_(args.head_dim), padded_dim_(padded_dim), sizes_(padded_dim) {
    // Lines of the cache begin where the processor's do.
    const uintptr_t address = reinterpret_cast<uintptr_t>(buffer);
    uint8_t* bytes = reinterpret_cast<uint8_t*>((address + 63) / 64 * 64);
    key_lines_ = bytes;
    value_lines_ = key_lines_ + sizes_.key_bytes;
    queries_ = reinterpret_cast<IntElement*>(value_lines_ + sizes_.value_bytes);
    probabilities_ = queries_ + kMaxQueries * kPlanes * sizes_.query_stride;
  }

  // Rounds the queries, for all tokens to come.
  void Take(const QueryLanes& queries) {
    alignas(64) int32_t integers[kMaxInt8HeadDim];
    for (int query = 0; query < queries.num_queries; ++query) {
      const float* row = queries.rows[query];
      query_scales_[query] = QuantizeByAbsmax(row, padded_dim_, kMaxActivation16, integers);
      int32_t sum = 0;
      for (int64_t d = 0; d < padded_dim_; ++d) sum += integers[d];
      StoreCorrections(sum, query_corrections_ + query * kPlanes);
      IntElement* out = queries_ + query * kPlanes * sizes_.query_stride;
      for (int64_t d = 0; d < padded_dim_; d += kTileN) {
        StoreActivations<kTileN>(integers + d, out + d, kPlanes, sizes_.query_stride);
      }
    }
  }

  // Makes ready for Score of `chunk`; there is nothing to do.
  void Start(const QueryLanes&, const Chunk<T>&) {}

  // scores [kChunk<T>, num_lanes] = K . q for the tokens of the chunk; further rows are written.
  void Score(const QueryLanes& queries, const Chunk<T>& chunk, const Chunk<T>& next,
             float* scores) {
    const int64_t num_tiles = CeilDiv(chunk.count, kRows * kTileN) * kRows;
    PrefetchScales(args_.key_scales, next);
    PrefetchScales(args_.value_scales, next);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      PackKeys(chunk.keys + tile * kTileN, key_lines_ + tile * sizes_.key_stride);
    }
    for (int64_t tile = 0; tile < num_tiles; tile += kRows) {
      for (int64_t lane = 0; lane < queries.num_lanes; lane += kTileN) {
        const int64_t left = queries.num_queries - lane;
        ScoreTiles(tile, lane, left < kTileN ? left : kTileN, chunk, next,
                   scores + tile * kTileN * queries.num_lanes + lane, queries.num_lanes);
      }
    }
  }

  // sums [num_queries, padded_dim] += probabilities . V; probabilities [kChunk<T>, num_lanes], whose
  // sums are in totals [num_lanes].
  void AddValues(const QueryLanes& queries, const Chunk<T>& chunk, const Chunk<T>& next,
                 const float* probabilities, float* sums, float* totals) {
    for (int64_t lane = 0; lane < queries.num_lanes; lane += kLanes) {
      const int64_t left = queries.num_queries - lane;
      TakeProbabilities(queries, chunk, probabilities + lane, lane, left < kLanes ? left : kLanes,
                        totals);
    }
    FindRuns(queries, chunk);
    PackValues(chunk);
    const int64_t num_tiles = padded_dim_ / kTileN;
    int64_t tile = 0;
    for (; tile + kRows <= num_tiles; tile += kRows) {
      // A part at a time: requests that come too fast are lost.
      const int64_t first = tile * kTokens / num_tiles, end = (tile + kRows) * kTokens / num_tiles;
      PrefetchRows(next.values + first, end - first, head_dim_);
      AddTiles<kRows>(tile, sums);
    }
    for (; tile < num_tiles; ++tile) AddTiles<1>(tile, sums);
  }

 private:
  // How the buffer is divided.
  struct Sizes {
    int64_t key_stride;  // bytes of a tile row: lines of 4 elements each of 16 tokens
    int64_t key_bytes, value_bytes;
    int64_t query_stride;  // elements of one plane of a query
    int64_t bytes;

    explicit Sizes(int64_t padded_dim) {
      // Keys are turned round 64 bytes at a time.
      key_stride = CeilDiv(padded_dim, kIntLineBytes) * kIntLineBytes * kTileN;
      key_bytes = kTokenTiles * key_stride;
      value_bytes = CeilDiv(padded_dim, kInterleaved) * kInterleaved * kTokens;
      // An odd number of cache lines: see quantize_activations.h.
      constexpr int64_t kLine = kIntLineBytes / sizeof(IntElement);
      query_stride = (CeilDiv(padded_dim, kLine) | 1) * kLine;
      const int64_t elements = kMaxQueries * kPlanes * (query_stride + kTokens);
      bytes = key_bytes + value_bytes + elements * static_cast<int64_t>(sizeof(IntElement));
    }
  };

  // What sums begin with, so that bytes count from kCacheZero on; planes are joined later.
  static void StoreCorrections(int32_t sum, int32_t* corrections) {
    for (int plane = 0; plane < kPlanes; ++plane) corrections[plane] = 0;
    corrections[kPlanes - 1] = -kByteZero * sum;
  }

  // 16 tokens' keys as the lines of a tile row.
  void PackKeys(const uint8_t* const* keys, uint8_t* lines) const {
    for (int64_t d = 0; d < head_dim_; d += kIntLineBytes, lines += kTileN * kIntLineBytes) {
      const int64_t left = head_dim_ - d;
      Vec rows[kTileN];
      for (int t = 0; t < kTileN; ++t) {
        if (left >= kIntLineBytes) {
          rows[t] = Load(reinterpret_cast<const float*>(keys[t] + d));
        } else {
          uint8_t bytes[kIntLineBytes] = {};
          std::memcpy(bytes, keys[t] + d, left);
          rows[t] = Load(reinterpret_cast<const float*>(bytes));
        }
      }
      Transpose(rows);
      for (int i = 0; i < kTileN; ++i) {
        Store(reinterpret_cast<float*>(lines + i * kIntLineBytes), rows[i]);
      }
    }
  }

  // Values as lines of 16 elements of 4 tokens each.
  void PackValues(const Chunk<T>& chunk) const {
    constexpr int64_t kStride = kValueLines * kIntLineBytes;
    for (int64_t t = 0; t < kTokens; t += kQuad) {
      uint8_t* lines = value_lines_ + t / kQuad * kIntLineBytes;
      const uint8_t* const* rows = chunk.values + t;
      int64_t d = 0;
      for (; d + kInterleaved <= head_dim_; d += kInterleaved) {
        InterleaveRows(rows[0] + d, rows[1] + d, rows[2] + d, rows[3] + d,
                       lines + d / kTileN * kStride, kStride);
      }
      if (d == head_dim_) continue;
      uint8_t bytes[kQuad][kInterleaved] = {};
      for (int i = 0; i < kQuad; ++i) std::memcpy(bytes[i], rows[i] + d, head_dim_ - d);
      InterleaveRows(bytes[0], bytes[1], bytes[2], bytes[3], lines + d / kTileN * kStride,
                     kStride);
    }
  }

  // kRows tile rows of tokens times `count` queries from `first` on.
  void ScoreTiles(int64_t tile, int64_t first, int64_t count, const Chunk<T>& chunk,
                  const Chunk<T>& next, float* scores, int64_t num_lanes) {
    Vec rows[kRows][kTileN];
    for (int64_t i = count; i < kTileN; ++i) {
      for (int r = 0; r < kRows; ++r) rows[r][i] = Zero();
    }
    const Lines lines = {key_lines_ + tile * sizes_.key_stride,
                         sizes_.key_stride,
                         padded_dim_ / kQuad,
                         queries_ + first * kPlanes * sizes_.query_stride,
                         sizes_.query_stride,
                         query_corrections_ + first * kPlanes};
    const T* const* fetched = next.keys + tile * kTileN;
    ForQueries<SignedBytes, kRows>(lines, count, [&](int64_t query, int r, const IntVec& sum) {
      rows[r][query] = Mul(ToFloats(sum), Set1(query_scales_[first + query]));
      if (first == 0 && r == 0) PrefetchShare(fetched, query, count);
    });
    for (int r = 0; r < kRows; ++r) {
      Transpose(rows[r]);
      for (int t = 0; t < kTileN; ++t, scores += num_lanes) {
        const Vec row = rows[r][t];
        if (args_.key_scales == nullptr) {
          Store(scores, row);
        } else {
          const float scale = args_.key_scales[chunk.places[(tile + r) * kTileN + t]];
          Store(scores, Mul(row, Set1(scale)));
        }
      }
    }
  }

  // Fetches the part of kRows * kTileN tokens that is query `query`'s of `count`: requests that
  // come too fast are lost.
  void PrefetchShare(const T* const* tokens, int64_t query, int64_t count) const {
    const int64_t begin = query * kRows * kTileN / count, end = (query + 1) * kRows * kTileN / count;
    PrefetchRows(tokens + begin, end - begin, head_dim_);
  }

  // Those of one block lie together.
  static void PrefetchScales(const float* scales, const Chunk<T>& next) {
    if (scales == nullptr) return;
    for (int64_t t = 0; t < kTokens; t += kTileN) Prefetch<64>(scales + next.places[t]);
  }

  // Whether a query's probabilities of a chunk get all bits there are.
  static bool IsFine(const QueryLanes& queries, const Chunk<T>& chunk, int64_t query) {
    return chunk.begin < kFineTokens || queries.positions[query] < chunk.begin + kFineTokens;
  }

  // Queries side by side whose probabilities have the same bits.
  void FindRuns(const QueryLanes& queries, const Chunk<T>& chunk) {
    num_runs_ = 0;
    for (int query = 0; query < queries.num_queries; ++query) {
      // Where 16 bits are one plane, all are multiplied alike.
      const bool is_fine = kPlanes == 2 && IsFine(queries, chunk, query);
      if (num_runs_ == 0 || runs_[num_runs_ - 1].is_fine != is_fine) {
        runs_[num_runs_++] = {query, 0, is_fine};
      }
      ++runs_[num_runs_ - 1].count;
    }
  }

  // Rounds the probabilities of up to kLanes queries from `first` on, times the scales of the tokens'
  // values.
  void TakeProbabilities(const QueryLanes& queries, const Chunk<T>& chunk,
                         const float* probabilities, int64_t first, int64_t count, float* totals) {
    const int64_t num_lanes = queries.num_lanes;
    Vec weights[kTokens];
    Vec most = Zero(), sum = Zero(), not_finite = Zero();
    for (int64_t t = 0; t < chunk.count; ++t) {
      Vec weight = Load(probabilities + t * num_lanes);
      if (args_.value_scales != nullptr) {
        weight = Mul(weight, Set1(args_.value_scales[chunk.places[t]]));
      }
      weights[t] = weight;
      most = Max(weight, most);
      sum = Add(sum, weight);
      not_finite = MulAdd(weight, Zero(), not_finite);
    }
    const float begin = static_cast<float>(chunk.begin);
    const Vec fine = Set1(kMaxFineProbability), last_fine = Set1(begin + (kFineTokens - 1));
    const Vec largest = chunk.begin < kFineTokens
                            ? fine
                            : SelectLessEqual(Load(queries.positions + first), last_fine, fine,
                                              Set1(kMaxProbability));
    const Vec inverse = SelectLessEqual(most, Set1(kLeastActivation), Zero(), Div(largest, most));
    const Vec step = Add(Div(most, largest), not_finite);
    Vec rounded_sum = Zero();
    for (int64_t t = 0; t < chunk.count; ++t) {
      weights[t] = ToFloats(RoundToInt(Mul(weights[t], inverse)));
      rounded_sum = Add(rounded_sum, weights[t]);
    }
    for (int64_t t = chunk.count; t < kTokens; ++t) weights[t] = Zero();
    Store(probability_scales_ + first, step);
    alignas(64) int32_t corrections[kLanes];
    StoreInts(corrections,
              RoundToInt(Mul(rounded_sum, Set1(-static_cast<float>(kUnsignedByteZero)))));
    if (args_.value_channels.scale != nullptr) {
      // Offsets are taken off behind the division by the total: of what was multiplied.
      const Vec lost = MulAdd(sum, Set1(-1.0f), Mul(rounded_sum, step));
      Store(totals + first, Add(Load(totals + first), lost));
    }
    alignas(64) int32_t integers[kLanes][kTokens];
    for (int64_t t = 0; t < kTokens; t += kTileN) {
      Vec rows[kTileN];
      for (int i = 0; i < kTileN; ++i) rows[i] = weights[t + i];
      Transpose(rows);
      for (int64_t i = 0; i < count; ++i) StoreInts(integers[i] + t, RoundToInt(rows[i]));
    }
    for (int64_t i = 0; i < count; ++i) {
      const bool has_planes = kPlanes == 2 && IsFine(queries, chunk, first + i);
      StoreProbabilities(integers[i], first + i, has_planes);
      probability_corrections_[first + i] = corrections[i];
      plane_corrections_[2 * (first + i)] = 0;
      plane_corrections_[2 * (first + i) + 1] = corrections[i];
    }
  }

  // 256 * high + low, both without sign, or the integers as they are.
  void StoreProbabilities(const int32_t* integers, int64_t query, bool has_planes) {
    IntElement* out = probabilities_ + query * kPlanes * kTokens;
    if (!has_planes) return StoreActivations<kTokens>(integers, out, 1, 0);
    alignas(64) int32_t high[kTokens], low[kTokens];
    for (int64_t t = 0; t < kTokens; ++t) high[t] = integers[t] >> 8;
    for (int64_t t = 0; t < kTokens; ++t) low[t] = integers[t] & 255;
    StoreActivations<kTokens>(high, out, 1, 0);
    StoreActivations<kTokens>(low, out + kTokens, 1, 0);
  }

  // R tile rows of a head's elements times all queries.
  template <int R>
  void AddTiles(int64_t tile, float* sums) {
    for (int run = 0; run < num_runs_; ++run) {
      const auto [first, count, is_fine] = runs_[run];
      if constexpr (kPlanes == 2) {
        if (is_fine) {
          AddRun<UnsignedBytes<2>, R>(first, count, kTokens, plane_corrections_, tile, sums);
          continue;
        }
      }
      AddRun<UnsignedBytes<1>, R>(first, count, kPlanes * kTokens, probability_corrections_, tile,
                                  sums);
    }
  }

  template <class Operand, int R>
  void AddRun(int64_t first, int64_t count, int64_t x_stride, const int32_t* corrections,
              int64_t tile, float* sums) {
    constexpr int64_t kStride = kValueLines * kIntLineBytes;
    const Lines lines = {value_lines_ + tile * kStride, kStride, kValueLines,
                         probabilities_ + first * kPlanes * kTokens, x_stride,
                         corrections + first * Operand::kOperandPlanes};
    ForQueries<Operand, R>(lines, count, [&](int64_t query, int r, const IntVec& sum) {
      float* out = sums + (first + query) * padded_dim_ + (tile + r) * kTileN;
      Store(out, MulAdd(ToFloats(sum), Set1(probability_scales_[first + query]), Load(out)));
    });
  }

  // Queries as operands: 16 bits, in one or two planes.
  struct SignedBytes {
    static constexpr int kOperandPlanes = kPlanes;
    static IntVec Dot(const IntVec& sum, const Bytes& w, const Quad& x) {
      return DotBytes(sum, w, x);
    }
  };
  // Probabilities as operands: one or two planes.
  template <int kNumPlanes>
  struct UnsignedBytes {
    static constexpr int kOperandPlanes = kNumPlanes;
    static IntVec Dot(const IntVec& sum, const Bytes& w, const Quad& x) {
      return DotUnsigned(sum, w, x);
    }
  };

  // Tile rows at w, and the operand rows (planes of queries) that they are multiplied with.
  struct Lines {
    const uint8_t* w;
    int64_t w_stride;
    int64_t num_lines;
    const IntElement* x;
    int64_t x_stride;
    const int32_t* corrections;  // of each operand row
  };

  // Calls use(query, r, sum) for the products of R tile rows and `count` queries; `lines` begins
  // with the first of these.
  template <class Operand, int R, typename Use>
  [[gnu::always_inline]] static void ForQueries(const Lines& lines, int64_t count, Use&& use) {
    constexpr int kBlock = kIntBlockTokens / Operand::kOperandPlanes;
    int64_t query = 0;
    for (; query + kBlock <= count; query += kBlock) ForBlock<Operand, R, kBlock>(lines, query, use);
    ForRest<Operand, R, kBlock - 1>(lines, query, count - query, use);
  }

  template <class Operand, int R, int Q, typename Use>
  [[gnu::always_inline]] static void ForRest(const Lines& lines, int64_t first, int64_t count, Use&& use) {
    if constexpr (Q > 0) {
      if (count == Q) return ForBlock<Operand, R, Q>(lines, first, use);
      ForRest<Operand, R, Q - 1>(lines, first, count, use);
    }
  }

  template <class Operand, int R, int Q, typename Use>
  [[gnu::always_inline]] static void ForBlock(const Lines& lines, int64_t first, Use&& use) {
    constexpr int kOperandPlanes = Operand::kOperandPlanes, C = Q * kOperandPlanes;
    const uint8_t* w = lines.w;
    const int64_t w_stride = lines.w_stride, x_stride = lines.x_stride;
    const int32_t* corrections = lines.corrections + first * kOperandPlanes;
    // One pointer for three rows: an address is a pointer plus 0, 1 or 2 strides.
    const IntElement* x[(C + 2) / 3];
    for (int i = 0; i < C; i += 3) x[i / 3] = lines.x + (first * kOperandPlanes + i) * x_stride;
    IntVec sums[C][R];
#pragma GCC unroll 16
    for (int i = 0; i < C; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[i][r] = SetInt(corrections[i]);
    }
    for (int64_t line = 0; line < lines.num_lines; ++line) {
      Bytes bytes[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) bytes[r] = LoadBytes(w + line * kIntLineBytes + r * w_stride);
#pragma GCC unroll 16
      for (int i = 0; i < C; ++i) {
        const Quad quad = LoadQuad(x[i / 3] + i % 3 * x_stride + line * kQuad);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sums[i][r] = Operand::Dot(sums[i][r], bytes[r], quad);
      }
    }
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        IntVec joined = sums[q * kOperandPlanes][r];
        if constexpr (kOperandPlanes == 2) joined = JoinPlanes(joined, sums[q * 2 + 1][r]);
        use(first + q, r, joined);
      }
    }
  }

  const AttentionArgs& args_;
  const int64_t head_dim_;
  const int64_t padded_dim_;
  const Sizes sizes_;
  uint8_t* key_lines_;         // [kTokenTiles, lines, 16 tokens, 4]
  uint8_t* value_lines_;       // [tiles, kValueLines, 16 elements, 4 tokens]
  IntElement* queries_;        // [kMaxQueries, kPlanes, query_stride]
  IntElement* probabilities_;  // [kMaxQueries, kPlanes, kTokens]
  float query_scales_[kMaxQueries];
  float probability_scales_[kMaxQueries];
  int32_t query_corrections_[kMaxQueries * kPlanes];
  int32_t probability_corrections_[kMaxQueries];  // of one plane
  int32_t plane_corrections_[kMaxQueries * 2];    // of two
  struct Run {
    int first, count;
    bool is_fine;
  };
  Run runs_[kMaxQueries];
  int num_runs_ = 0;
};

}  // namespace glm::GLM_ISA
