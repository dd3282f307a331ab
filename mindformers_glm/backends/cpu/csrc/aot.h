// MindSpore's calling convention for ahead-of-time custom operators, and checks of its arguments.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "dtype.h"
#include "kernel_time.h"
#include "threads.h"

#define GLM_EXPORT extern "C" __attribute__((visibility("default")))

// The signature that ops.Custom(func_type="aot") calls: inputs in order, then the output.
#define GLM_AOT_SIGNATURE                                                                          \
  int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void * /*stream*/, \
      void * /*extra*/
#define GLM_AOT_ARGUMENTS nparam, params, ndims, shapes, dtypes

namespace glm {

struct Tensor {
  const char* name;
  void* data;
  int ndim;
  const int64_t* shape;
  DType dtype;

  template <typename T>
  T* As() const {
    return static_cast<T*>(data);
  }
};

// The arguments of one call. Every check throws std::invalid_argument; `RunAot` turns that into a
// return code, which MindSpore raises as an error.
class AotCall {
 public:
  AotCall(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes);

  void ExpectParams(int least, int most) const;
  int num_params() const { return nparam_; }
  int num_dimensions(int index) const { return index < nparam_ ? ndims_[index] : 0; }

  // Parameter `index` (a negative one counts from the end, -1 is the output); data is not null
  // unless the tensor is empty.
  Tensor Get(int index, const char* name, int ndim, std::initializer_list<DType> dtypes) const;
  // An int32 tensor of one element that must lie in [0, limit].
  int64_t GetCount(int index, const char* name, int64_t limit) const;
  float GetFloat(int index, const char* name) const;

 private:
  int nparam_;
  void** params_;
  int* ndims_;
  int64_t** shapes_;
  const char** dtypes_;
};

// Throws std::invalid_argument(message) unless `ok`. A message that is put together is a function,
// called only then: checks run in every operator of every layer, and for every block of a context.
[[noreturn]] void Refuse(const std::string& message);
inline void Expect(bool ok, const char* message) {
  if (!ok) Refuse(message);
}
template <typename Describe, typename = decltype(std::declval<Describe>()())>
inline void Expect(bool ok, const Describe& describe) {
  if (!ok) Refuse(describe());
}
void ExpectSize(const Tensor& tensor, int axis, int64_t size);

// The body of an operator, and the list of those that a program may name (program.cc).
using Operator = void (*)(const AotCall& call);
struct OperatorEntry {
  const char* symbol;
  Operator run;
};
// Returns the operator's number; called while the library is opened.
int AddOperator(const char* symbol, Operator run);
const OperatorEntry& GetOperator(int64_t number);

// Says on stderr what was wrong with a call of `op`.
void ReportError(const char* op, const char* message) noexcept;

// Runs the body of an operator with the threads it may use; no exception leaves it.
// Returns 0, or 1 after an error that it has reported.
template <typename Body>
int RunAot(const char* op, Body&& body) noexcept {
  try {
    const KernelTimer timer;
    const ThreadTeam team;
    body();
    return 0;
  } catch (const std::exception& error) {
    ReportError(op, error.what());
    return 1;
  }
}

}  // namespace glm

// Exports an operator under its symbol and lets programs name it. The expression may use `call`.
#define GLM_OPERATOR(symbol, ...)                                                        \
  namespace {                                                                            \
  void symbol##_run(const glm::AotCall& call) { __VA_ARGS__; }                           \
  [[maybe_unused]] const int symbol##_number = glm::AddOperator(#symbol, symbol##_run);  \
  }                                                                                      \
  GLM_EXPORT int symbol(GLM_AOT_SIGNATURE) {                                             \
    return glm::RunAot(#symbol, [&] { symbol##_run(glm::AotCall(GLM_AOT_ARGUMENTS)); }); \
  }
