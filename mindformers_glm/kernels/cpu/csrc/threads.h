// How many threads an operator may use.
#pragma once

namespace glm {

// Gives the calling thread the number of threads that was set. OpenMP keeps one number for each
// thread of a program, and MindSpore calls operators on threads of its own.
void UseChosenThreads();

}  // namespace glm
