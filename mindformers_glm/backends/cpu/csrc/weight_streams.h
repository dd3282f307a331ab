// How many places of memory a thread reads weights from, where each weight is used once.
#pragma once

namespace glm {

constexpr int kMostStreams = 4;

// 1, a single stream that is fetched past the caches, or kMostStreams, each into the second-level
// cache. Chosen by the processor's maker (weight_streams.cc); of no effect on results. Kernels for
// Arm have one way (dot_int_neon.h, dot_int_dotprod.h) and ask for it in glm_stream_read alone.
int WeightStreams();

}  // namespace glm
