// The machine's limit for decode: how fast threads can read memory in one pass.
#include <cstdint>

#include "aot.h"
#include "threads.h"

// Reads `bytes` at `data` once with all threads; the return value keeps the compiler honest.
GLM_EXPORT int64_t glm_stream_read(const void* data, int64_t bytes) {
  const int64_t* words = static_cast<const int64_t*>(data);
  const int64_t count = bytes / 8;
  int64_t sum = 0;
  const glm::ThreadTeam team;
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += words[i];
  return sum;
}
