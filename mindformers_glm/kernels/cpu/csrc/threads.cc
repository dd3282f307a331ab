#include "threads.h"

#include <omp.h>

#include <atomic>

#include "aot.h"

namespace glm {
namespace {

// OMP_NUM_THREADS, or what OpenMP takes without it.
const int initial_num_threads = omp_get_max_threads();
std::atomic<int> num_threads{initial_num_threads};

}  // namespace

void UseChosenThreads() { omp_set_num_threads(num_threads.load(std::memory_order_relaxed)); }

}  // namespace glm

// Holds for every operator from now on; 0: as it was when the library was loaded.
GLM_EXPORT void glm_set_num_threads(int count) {
  glm::num_threads = count > 0 ? count : glm::initial_num_threads;
}

GLM_EXPORT int glm_num_threads() { return glm::num_threads; }
