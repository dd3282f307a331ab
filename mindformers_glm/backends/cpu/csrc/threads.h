// The threads an operator may use.
#pragma once

namespace glm {

// Lives as long as the calling thread runs an operator, and gives it the number of threads that was
// set: OpenMP keeps one for each thread of a program, and MindSpore calls operators on threads of
// its own. The thread's own number is back afterwards: MindSpore and others in the process have
// loops of theirs in the same OpenMP library.
//
// It also sees to it that only one thread of the process keeps its team of OpenMP threads. With
// more of these than processors, idle ones are put to sleep after 100 rounds of waiting and not
// 300,000, and waking them takes 40 us in every operator (docs/lab_notes.md). MindSpore runs the
// first step of each graph on another thread than the rest.
class ThreadTeam {
 public:
  ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  ~ThreadTeam();

 private:
  int callers_num_threads_;
};

}  // namespace glm
