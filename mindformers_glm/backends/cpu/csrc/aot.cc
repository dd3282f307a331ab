#include "aot.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace glm {
namespace {

int64_t CountElements(int ndim, const int64_t* shape) {
  int64_t count = 1;
  for (int axis = 0; axis < ndim; ++axis) count *= shape[axis];
  return count;
}

// Within a function, so that it is there before the first operator of any file adds itself.
std::vector<OperatorEntry>& Entries() {
  static std::vector<OperatorEntry> entries;
  return entries;
}

}  // namespace

int AddOperator(const char* symbol, Operator run) {
  Entries().push_back({symbol, run});
  return static_cast<int>(Entries().size()) - 1;
}

const OperatorEntry& GetOperator(int64_t number) {
  const int64_t count = static_cast<int64_t>(Entries().size());
  Expect(number >= 0 && number < count, [&] {
    return "there is no operator number " + std::to_string(number) + " of " + std::to_string(count);
  });
  return Entries()[number];
}

void Refuse(const std::string& message) { throw std::invalid_argument(message); }

void ExpectSize(const Tensor& tensor, int axis, int64_t size) {
  Expect(tensor.shape[axis] == size, [&] {
    return std::string(tensor.name) + " has size " + std::to_string(tensor.shape[axis]) +
           " on axis " + std::to_string(axis) + ", expected " + std::to_string(size);
  });
}

void ReportError(const char* op, const char* message) noexcept {
  std::fprintf(stderr, "mindformers_glm: operator %s: %s\n", op, message);
}

AotCall::AotCall(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes)
    : nparam_(nparam), params_(params), ndims_(ndims), shapes_(shapes), dtypes_(dtypes) {
  Expect(params != nullptr && ndims != nullptr && shapes != nullptr && dtypes != nullptr,
         "called without parameter arrays");
}

void AotCall::ExpectParams(int least, int most) const {
  Expect(nparam_ >= least && nparam_ <= most, [&] {
    return "got " + std::to_string(nparam_) + " parameters, expected " + std::to_string(least) +
           (most == least ? "" : " to " + std::to_string(most));
  });
}

Tensor AotCall::Get(int index, const char* name, int ndim,
                    std::initializer_list<DType> dtypes) const {
  if (index < 0) index += nparam_;
  Expect(index >= 0 && index < nparam_, [&] { return std::string(name) + " is missing"; });
  Tensor tensor{name, params_[index], ndims_[index], shapes_[index], ParseDType(dtypes_[index])};
  Expect(tensor.ndim == ndim, [&] {
    return std::string(name) + " has " + std::to_string(tensor.ndim) + " dimensions, expected " +
           std::to_string(ndim);
  });
  bool known = false;
  for (DType dtype : dtypes) known = known || dtype == tensor.dtype;
  Expect(known, [&] { return std::string(name) + " has unexpected type " + dtypes_[index]; });
  Expect(tensor.data != nullptr || CountElements(tensor.ndim, tensor.shape) == 0,
         [&] { return std::string(name) + " has no data"; });
  return tensor;
}

int64_t AotCall::GetCount(int index, const char* name, int64_t limit) const {
  const Tensor tensor = Get(index, name, 1, {DType::kI32});
  ExpectSize(tensor, 0, 1);
  const int64_t count = *tensor.As<int32_t>();
  Expect(count >= 0 && count <= limit, [&] {
    return std::string(name) + " is " + std::to_string(count) + ", expected 0 to " +
           std::to_string(limit);
  });
  return count;
}

float AotCall::GetFloat(int index, const char* name) const {
  const Tensor tensor = Get(index, name, 1, {DType::kF32});
  ExpectSize(tensor, 0, 1);
  return *tensor.As<float>();
}

}  // namespace glm

// The number by which a program names an operator (program.cc), -1 if there is none.
GLM_EXPORT int glm_operator_number(const char* symbol) {
  const auto& entries = glm::Entries();
  for (size_t number = 0; number < entries.size(); ++number) {
    if (std::strcmp(entries[number].symbol, symbol) == 0) return static_cast<int>(number);
  }
  return -1;
}
