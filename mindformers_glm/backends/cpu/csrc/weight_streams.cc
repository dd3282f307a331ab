// An Intel processor keeps no more than 16 lines under way past its second-level cache, and memory
// behind a large mesh is far: a Xeon with AMX reads 13 GB/s by prefetchnta, 29 by one stream into
// the second-level cache and 36 by four. An AMD EPYC (Zen 4) reads a single stream past its caches
// 1 to 6 % faster than into them (docs/lab_notes.md).
#include "weight_streams.h"

#include <atomic>

#include "aot.h"

namespace glm {
namespace {

int ChooseStreams() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("amd")) return 1;
#endif
  return kMostStreams;
}

std::atomic<int> streams{0};

}  // namespace

int WeightStreams() {
  const int count = streams.load(std::memory_order_relaxed);
  if (count != 0) return count;
  streams.store(ChooseStreams(), std::memory_order_relaxed);
  return streams.load(std::memory_order_relaxed);
}

}  // namespace glm

// Uses `count` streams from now on (tests and benchmarks), 0: what the processor's maker calls for.
// Returns how many are in use.
GLM_EXPORT int glm_set_weight_streams(int count) {
  glm::streams.store(count == 1 || count == glm::kMostStreams ? count : 0);
  return glm::WeightStreams();
}
