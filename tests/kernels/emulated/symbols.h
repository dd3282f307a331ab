// The operators of the kernels by name; scripts/test_aarch64.sh writes symbols.cc from what the
// compiled kernels export.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

// GLM_AOT_SIGNATURE of csrc/aot.h.
using AotFunction = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);

extern const std::vector<std::pair<const char*, AotFunction>> kOperators;
