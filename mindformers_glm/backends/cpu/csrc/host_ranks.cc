#include "host_ranks.h"

#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <stdexcept>

#include "aot.h"

namespace glm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMostRanks = 64;
// Ranks that are about to come are waited for with open eyes: to sleep and be woken takes 50 us.
// With fewer cores than ranks, every look in vain after the first ones lets another process run.
constexpr int kLooksBeforeYield = 256;
constexpr auto kAwake = std::chrono::microseconds(200);
// Between two looks at whether a rank has ended, which nobody wakes a sleeper for.
constexpr long kSleepNs = 100 * 1000 * 1000;
// From a rank's end to this one's: the launcher is to see which was first.
constexpr useconds_t kSettleUs = 500 * 1000;

inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

static_assert(std::atomic<uint32_t>::is_always_lock_free, "processes share them");
static_assert(sizeof(std::atomic<uint32_t>) == 4, "the system looks at these bytes");

void SleepWhile(std::atomic<uint32_t>& word, uint32_t value) {
  const timespec duration{0, kSleepNs};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &duration, nullptr, 0);
}

void WakeAll(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

int OpenProcess(int32_t pid) {
#ifdef SYS_pidfd_open
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
#else
  return -1;
#endif
}

}  // namespace

// How far a rank has come. Two cache lines, which the processor fetches together.
struct alignas(128) HostRanks::Post {
  std::atomic<uint32_t> turn;
  std::atomic<uint32_t> num_sleepers;
};

int64_t HostRanks::CountBytes(int64_t size) {
  return size * static_cast<int64_t>(sizeof(Post) + 2 * kSlotFloats * sizeof(float));
}

HostRanks::HostRanks(void* memory, int64_t rank, int64_t size, const int32_t* pids,
                     double timeout_s)
    : posts_(static_cast<Post*>(memory)), rank_(rank), size_(size), timeout_s_(timeout_s) {
  Expect(memory != nullptr && pids != nullptr && size >= 2 && rank >= 0 && rank < size,
         "called without memory or ranks");
  Expect(size <= kMostRanks, "more ranks than one host can have");
  slots_ = reinterpret_cast<float*>(static_cast<char*>(memory) + size * sizeof(Post));
  for (int64_t r = 0; r < size; ++r) {
    pids_[r] = pids[r];
    process_files_[r] = r == rank ? -1 : OpenProcess(pids[r]);
  }
}

float* HostRanks::Slot(int64_t rank) const {
  return slots_ + (2 * rank + is_second_) * kSlotFloats;
}

const char* HostRanks::failure() const { return failure_; }

void HostRanks::Meet() {
  if (failure_[0] != '\0') throw std::runtime_error(failure_);
  Post& own = posts_[rank_];
  own.turn.store(++turn_);
  if (own.num_sleepers.load() > 0) WakeAll(own.turn);
  for (int64_t r = 0; r < size_; ++r) {
    if (r != rank_) WaitFor(r);
  }
}

void HostRanks::WaitFor(int64_t rank) {
  Post& post = posts_[rank];
  const auto is_there = [&] { return static_cast<int32_t>(post.turn.load() - turn_) >= 0; };
  for (int look = 0; look < kLooksBeforeYield; ++look) {
    if (is_there()) return;
    Pause();
  }
  const auto begin = Clock::now();
  while (Clock::now() - begin < kAwake) {
    if (is_there()) return;
    sched_yield();
  }
  for (;;) {
    const uint32_t seen = post.turn.load();
    if (is_there()) return;
    // A rank that comes now looks for sleepers after it has changed the word, which stays awake
    // then.
    ++post.num_sleepers;
    if (post.turn.load() == seen) SleepWhile(post.turn, seen);
    --post.num_sleepers;
    if (is_there()) return;
    const bool has_ended = HasEnded(rank);
    const std::chrono::duration<double> waited = Clock::now() - begin;
    if (!has_ended && waited.count() < timeout_s_) continue;
    if (has_ended) {
      usleep(kSettleUs);
      if (is_there()) return;  // its last words were these
      std::snprintf(failure_, sizeof(failure_), "rank %d has ended", static_cast<int>(rank));
    } else {
      std::snprintf(failure_, sizeof(failure_), "rank %d did not send its part for %g seconds",
                    static_cast<int>(rank), timeout_s_);
    }
    throw std::runtime_error(failure_);
  }
}

bool HostRanks::HasEnded(int64_t rank) const {
  // The file of a process tells of its end at once; its number stays until its parent has noticed.
  pollfd file{process_files_[rank], POLLIN, 0};
  if (file.fd >= 0) return poll(&file, 1, 0) > 0;
  return kill(pids_[rank], 0) != 0 && errno == ESRCH;
}

namespace {

std::unique_ptr<HostRanks>& Joined() {
  static std::unique_ptr<HostRanks> joined;
  return joined;
}

}  // namespace

HostRanks& JoinedRanks() {
  Expect(Joined() != nullptr, "called before the ranks of this host have met");
  return *Joined();
}

}  // namespace glm

// Bytes of the memory that so many ranks share.
GLM_EXPORT int64_t glm_host_ranks_bytes(int64_t size) { return glm::HostRanks::CountBytes(size); }

// Takes part from now on, to the end of the process.
GLM_EXPORT int glm_join_host_ranks(void* memory, int64_t rank, int64_t size, const int32_t* pids,
                                   double timeout_s) {
  return glm::RunAot("glm_join_host_ranks", [&] {
    glm::Joined() = std::make_unique<glm::HostRanks>(memory, rank, size, pids, timeout_s);
  });
}

// What went wrong among the ranks of this host, "" if nothing did.
GLM_EXPORT const char* glm_host_ranks_failure() {
  return glm::Joined() == nullptr ? "" : glm::Joined()->failure();
}
