// What the ranks of one host make together of what each has, through the memory that they share.
// Every rank adds up in the order of the ranks, so that all have the same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "aot.h"
#include "host_ranks.h"
#include "kernel_table.h"

namespace glm {
namespace {

constexpr int64_t kSlotFloats = HostRanks::kSlotFloats;
constexpr int64_t kBlock = 2048;            // floats that a thread takes at a time
constexpr int64_t kAlone = 8 * kBlock;      // so few are one thread's work
constexpr int64_t kSharedSum = 4 * kBlock;  // so many are added up once, each rank a part of them

// body(begin, end) for every block of a range, by all threads.
template <typename Body>
void ForBlocks(int64_t begin, int64_t end, const Body& body) {
  const int64_t num_blocks = CeilDiv(end - begin, kBlock);
#pragma omp parallel for schedule(static) if (end - begin > kAlone)
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t first = begin + block * kBlock;
    body(first, std::min(first + kBlock, end));
  }
}

void Copy(float* to, const float* from, int64_t begin, int64_t end) {
  std::memcpy(to + begin, from + begin, (end - begin) * sizeof(float));
}

// to[0..] = the sum of what all ranks have in their slots from `begin` to `end`.
void AddUp(const HostRanks& ranks, int64_t begin, int64_t end, float* to) {
  const int64_t count = end - begin;
  const float* first = ranks.Slot(0) + begin;
  const float* second = ranks.Slot(1) + begin;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = first[i] + second[i];
  for (int64_t r = 2; r < ranks.size(); ++r) {
    const float* next = ranks.Slot(r) + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] += next[i];
  }
}

// The first of the columns that are a rank's work, in whole blocks of a cache line.
int64_t FirstOfRank(const HostRanks& ranks, int64_t rank, int64_t count) {
  return std::min(CeilDiv(count * rank / ranks.size(), 16) * 16, count);
}

// Adds up at most a slot's floats.
void SumSlot(HostRanks& ranks, const float* x, float* y, int64_t count) {
  ranks.Begin();
  float* own = ranks.Slot(ranks.rank());
  ForBlocks(0, count, [&](int64_t begin, int64_t end) { Copy(own, x, begin, end); });
  ranks.Meet();
  if (ranks.size() == 2 || count < kSharedSum) {
    ForBlocks(0, count, [&](int64_t begin, int64_t end) { AddUp(ranks, begin, end, y + begin); });
    return;
  }
  // The sum of a part takes the place of this rank's own floats, which nobody else reads there.
  ForBlocks(FirstOfRank(ranks, ranks.rank(), count), FirstOfRank(ranks, ranks.rank() + 1, count),
            [&](int64_t begin, int64_t end) {
              alignas(64) float sums[kBlock];
              AddUp(ranks, begin, end, sums);
              std::memcpy(own + begin, sums, (end - begin) * sizeof(float));
            });
  ranks.Meet();
  for (int64_t r = 0; r < ranks.size(); ++r) {
    ForBlocks(FirstOfRank(ranks, r, count), FirstOfRank(ranks, r + 1, count),
              [&](int64_t begin, int64_t end) { Copy(y, ranks.Slot(r), begin, end); });
  }
}

// x f32[M, K], num_rows i32[1] -> f32[M, K], the same on every rank
void SumRanks(const AotCall& call) {
  call.ExpectParams(3, 3);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  ExpectSize(y, 0, x.shape[0]);
  ExpectSize(y, 1, x.shape[1]);
  const int64_t count = call.GetCount(1, "num_rows", x.shape[0]) * x.shape[1];
  HostRanks& ranks = JoinedRanks();
  for (int64_t begin = 0; begin < count; begin += kSlotFloats) {
    SumSlot(ranks, x.As<float>() + begin, y.As<float>() + begin,
            std::min(kSlotFloats, count - begin));
  }
}

// x f32[M, P], num_rows i32[1] -> f32[M, K]: the ranks' columns side by side, without those behind
// K
void GatherRanks(const AotCall& call) {
  call.ExpectParams(3, 3);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  HostRanks& ranks = JoinedRanks();
  const int64_t part = x.shape[1], width = y.shape[1];
  ExpectSize(y, 0, x.shape[0]);
  Expect(width <= part * ranks.size(), "the output is wider than what the ranks have");
  const int64_t num_rows = call.GetCount(1, "num_rows", x.shape[0]);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t begin = 0; begin < part; begin += kSlotFloats) {
      const int64_t count = std::min(kSlotFloats, part - begin);
      ranks.Begin();
      std::memcpy(ranks.Slot(ranks.rank()), x.As<float>() + row * part + begin,
                  count * sizeof(float));
      ranks.Meet();
      for (int64_t r = 0; r < ranks.size(); ++r) {
        const int64_t column = r * part + begin;
        const int64_t kept = std::min(count, width - column);
        if (kept <= 0) continue;
        float* to = y.As<float>() + row * width + column;
        ForBlocks(0, kept, [&](int64_t b, int64_t e) { Copy(to, ranks.Slot(r), b, e); });
      }
    }
  }
}

// The largest magnitude; no number where there is an infinity or a NaN.
float LargestMagnitude(const float* x, int64_t count) {
  float most = 0.0f, not_finite = 0.0f;
#pragma omp simd reduction(max : most) reduction(+ : not_finite)
  for (int64_t i = 0; i < count; ++i) {
    most = std::max(most, std::fabs(x[i]));
    not_finite += x[i] * 0.0f;
  }
  return most + not_finite;
}

float Larger(float a, float b) { return a > b || a != a ? a : b; }

// body(first row, number of rows) for as many rows at a time as a slot has room for.
template <typename Body>
void ForSlots(int64_t num_rows, int64_t floats_per_row, const Body& body) {
  const int64_t most = kSlotFloats / floats_per_row;
  for (int64_t row = 0; row < num_rows; row += most) body(row, std::min(most, num_rows - row));
}

// x f32[M, K], num_rows i32[1] -> f32[M, 1]: the largest magnitude that a row has on any rank
void RowMaxima(const AotCall& call) {
  call.ExpectParams(3, 3);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  ExpectSize(y, 0, x.shape[0]);
  ExpectSize(y, 1, 1);
  const int64_t width = x.shape[1];
  HostRanks& ranks = JoinedRanks();
  ForSlots(call.GetCount(1, "num_rows", x.shape[0]), 1, [&](int64_t first, int64_t count) {
    ranks.Begin();
    float* own = ranks.Slot(ranks.rank());
#pragma omp parallel for schedule(static) if (count * width > kAlone)
    for (int64_t row = 0; row < count; ++row) {
      own[row] = LargestMagnitude(x.As<float>() + (first + row) * width, width);
    }
    ranks.Meet();
    for (int64_t row = 0; row < count; ++row) {
      float most = 0.0f;
      for (int64_t r = 0; r < ranks.size(); ++r) most = Larger(ranks.Slot(r)[row], most);
      y.As<float>()[first + row] = most;
    }
  });
}

// How columns are cut between ranks: see ShareGroups in backends/cpu/collectives.py.
struct GroupCut {
  int64_t num_first, num_last;  // own columns in the first and in the last group
  int64_t before, behind;       // columns that are added
  const int32_t* groups;        // [ranks, 2]: the first and the last group of each

  // The largest magnitude of one of this rank's two groups: what all ranks have sent of a row.
  float Most(const HostRanks& ranks, int64_t row, int which) const {
    const int32_t group = groups[2 * ranks.rank() + which];
    float most = 0.0f;
    for (int64_t i = 0; i < 2 * ranks.size(); ++i) {
      if (groups[i] == group) most = Larger(ranks.Slot(i / 2)[2 * row + i % 2], most);
    }
    return most;
  }
};

// x f32[M, K], cut i32[4 + 2 * ranks], num_rows i32[1] -> f32[M, before + K + behind]: columns are
// added up to the borders of groups, with the largest magnitudes that these have on any rank
void ShareGroups(const AotCall& call) {
  call.ExpectParams(4, 4);
  const Tensor x = call.Get(0, "x", 2, {DType::kF32});
  const Tensor numbers = call.Get(1, "cut", 1, {DType::kI32});
  const Tensor y = call.Get(-1, "output", 2, {DType::kF32});
  HostRanks& ranks = JoinedRanks();
  ExpectSize(numbers, 0, 4 + 2 * ranks.size());
  const int32_t* given = numbers.As<int32_t>();
  const GroupCut cut{given[0], given[1], given[2], given[3], given + 4};
  const int64_t width = x.shape[1], wide = cut.before + width + cut.behind;
  Expect(cut.before >= 0 && cut.behind >= 0, "columns are added, not taken away");
  Expect(cut.num_first >= 0 && cut.num_first <= width && cut.num_last >= 0 && cut.num_last <= width,
         "a group has more columns than there are");
  ExpectSize(y, 0, x.shape[0]);
  ExpectSize(y, 1, wide);
  ForSlots(call.GetCount(2, "num_rows", x.shape[0]), 2, [&](int64_t first, int64_t count) {
    const float* rows = x.As<float>() + first * width;
    ranks.Begin();
    float* own = ranks.Slot(ranks.rank());
    for (int64_t row = 0; row < count; ++row) {
      const float* columns = rows + row * width;
      own[2 * row] = LargestMagnitude(columns, cut.num_first);
      own[2 * row + 1] = LargestMagnitude(columns + width - cut.num_last, cut.num_last);
    }
    ranks.Meet();
#pragma omp parallel for schedule(static) if (count * wide > kAlone)
    for (int64_t row = 0; row < count; ++row) {
      float* to = y.As<float>() + (first + row) * wide;
      std::fill_n(to, cut.before, cut.Most(ranks, row, 0));
      std::memcpy(to + cut.before, rows + row * width, width * sizeof(float));
      std::fill_n(to + cut.before + width, cut.behind, cut.Most(ranks, row, 1));
    }
  });
}

}  // namespace
}  // namespace glm

GLM_OPERATOR(glm_sum_ranks, glm::SumRanks(call))
GLM_OPERATOR(glm_gather_ranks, glm::GatherRanks(call))
GLM_OPERATOR(glm_row_maxima, glm::RowMaxima(call))
GLM_OPERATOR(glm_share_groups, glm::ShareGroups(call))

// all[size, bytes]: what every rank gives. At most a slot of it.
GLM_EXPORT int glm_gather_bytes(const void* own, void* all, int64_t bytes) {
  return glm::RunAot("glm_gather_bytes", [&] {
    glm::HostRanks& ranks = glm::JoinedRanks();
    glm::Expect(own != nullptr && all != nullptr && bytes >= 0 &&
                    bytes <= glm::kSlotFloats * static_cast<int64_t>(sizeof(float)),
                "called with more bytes than a slot has room for");
    ranks.Begin();
    std::memcpy(ranks.Slot(ranks.rank()), own, bytes);
    ranks.Meet();
    for (int64_t r = 0; r < ranks.size(); ++r) {
      std::memcpy(static_cast<char*>(all) + r * bytes, ranks.Slot(r), bytes);
    }
  });
}
