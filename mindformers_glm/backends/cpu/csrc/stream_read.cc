// The machine's limit for decode: how fast threads can read memory in one pass.
#include <cstdint>

#include "aot.h"
#include "threads.h"
#include "weight_streams.h"

namespace glm {
namespace {

// One stream of a thread before the next begins: a tile row of 4096 int8 columns.
constexpr int64_t kStreamWords = 8192;
constexpr int64_t kLineWords = 8;
constexpr int64_t kAheadWords = 512;

int64_t SumWords(const int64_t* words, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += words[i];
  return sum;
}

int64_t SumStreams(const int64_t* words) {
  int64_t sums[kLineWords] = {};  // vectors, without a sum across one for each line
  for (int64_t i = 0; i < kStreamWords; i += kLineWords) {
#pragma GCC unroll 4
    for (int stream = 0; stream < kMostStreams; ++stream) {
      const int64_t* line = words + stream * kStreamWords + i;
      __builtin_prefetch(line + kAheadWords, 0, 2);
#pragma GCC unroll 8
      for (int64_t lane = 0; lane < kLineWords; ++lane) sums[lane] += line[lane];
    }
  }
  return SumWords(sums, kLineWords);
}

}  // namespace
}  // namespace glm

// Reads `bytes` at `data` once with all threads, each in as many streams as WeightStreams says; the
// return value keeps the compiler honest.
GLM_EXPORT int64_t glm_stream_read(const void* data, int64_t bytes) {
  const int64_t* words = static_cast<const int64_t*>(data);
  const bool is_one_stream = glm::WeightStreams() == 1;
  constexpr int64_t kBlock = glm::kMostStreams * glm::kStreamWords;
  const int64_t num_blocks = bytes / 8 / kBlock;
  int64_t sum = glm::SumWords(words + num_blocks * kBlock, bytes / 8 - num_blocks * kBlock);
  const glm::ThreadTeam team;
#pragma omp parallel for schedule(static) reduction(+ : sum)
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t* block = words + i * kBlock;
    sum += is_one_stream ? glm::SumWords(block, kBlock) : glm::SumStreams(block);
  }
  return sum;
}
