#include "threads.h"

#include <omp.h>

#include <atomic>

#include "aot.h"

namespace glm {
namespace {

// OMP_NUM_THREADS, or what OpenMP takes without it.
const int initial_num_threads = omp_get_max_threads();
std::atomic<int> num_threads{initial_num_threads};

thread_local char here;  // its address names the thread
std::atomic<const char*> keeper{nullptr};

// The thread's settings outlast it (OpenMP 5.0, 3.2.43: soft), its number of threads among them.
void Dissolve() { omp_pause_resource(omp_pause_soft, omp_get_initial_device()); }

}  // namespace

ThreadTeam::ThreadTeam() : callers_num_threads_(omp_get_max_threads()) {
  omp_set_num_threads(num_threads.load(std::memory_order_relaxed));
}

ThreadTeam::~ThreadTeam() {
  const char* chosen = keeper.load(std::memory_order_relaxed);
  if (chosen != nullptr && chosen != &here) Dissolve();
  omp_set_num_threads(callers_num_threads_);
}

}  // namespace glm

// Holds for every operator from now on; 0: as it was when the library was loaded.
GLM_EXPORT void glm_set_num_threads(int count) {
  glm::num_threads = count > 0 ? count : glm::initial_num_threads;
}

GLM_EXPORT int glm_num_threads() { return glm::num_threads; }

// The calling thread keeps its team between operators, and from now on no other does. A team that
// another one had until now stays until its next operator, or until it calls glm_leave_team.
GLM_EXPORT void glm_keep_team() { glm::keeper = &glm::here; }

// Dissolves the calling thread's team.
GLM_EXPORT void glm_leave_team() { glm::Dissolve(); }
