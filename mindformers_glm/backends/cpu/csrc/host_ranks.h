// Memory that the ranks of a job share where all of them run on one host.
#pragma once

#include <cstdint>

namespace glm {

// A rank's view of it. Every rank has two slots, which it uses in turn: what a rank has written is
// there until all ranks have begun the exchange after the next one, so that one meeting is enough.
// All ranks make the same calls in the same order. Not for two threads at once.
class HostRanks {
 public:
  static constexpr int64_t kSlotFloats = 1 << 15;  // 128 KiB: slots of a few ranks stay in a cache

  static int64_t CountBytes(int64_t size);
  // `memory` holds zeros before the first rank comes; `pids` are the ranks' processes.
  HostRanks(void* memory, int64_t rank, int64_t size, const int32_t* pids, double timeout_s);
  HostRanks(const HostRanks&) = delete;
  HostRanks& operator=(const HostRanks&) = delete;

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }

  // Takes the other slots for what follows.
  void Begin() { is_second_ = !is_second_; }
  float* Slot(int64_t rank) const;
  // Returns when all ranks have come here; what they wrote before can be read then. Throws
  // std::runtime_error where one has ended, or stays away longer than the timeout, then and ever
  // after.
  void Meet();
  // What went wrong, "" before.
  const char* failure() const;

 private:
  struct Post;

  void WaitFor(int64_t rank);
  bool HasEnded(int64_t rank) const;

  Post* posts_;
  float* slots_;
  int64_t rank_, size_;
  double timeout_s_;
  uint32_t turn_ = 0;
  bool is_second_ = false;
  int process_files_[64];
  int32_t pids_[64];
  char failure_[256] = "";
};

// This process's. Throws std::invalid_argument where it has not joined others.
HostRanks& JoinedRanks();

}  // namespace glm
