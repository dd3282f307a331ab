// Several operators as one call of MindSpore, on what earlier ones among them have made: MindSpore
// takes tens of microseconds for every call, however little there is to do in it (lab_notes.md).
#include <array>
#include <mutex>
#include <stdexcept>
#include <string>

#include "aot.h"
#include "scratch.h"

namespace glm {
namespace {

constexpr int kMaxOperands = 16;
constexpr int64_t kMaxConstants = 16;
// Results that are kept at a time: of the stage before, of this one, the residual stream, and what
// ranks have made of the rows of the one before.
constexpr int64_t kNumPlaces = 4;
constexpr int64_t kOutput = -1;

// Reads the program's numbers one after the other.
class Program {
 public:
  explicit Program(const Tensor& tensor) : numbers_(tensor.As<int32_t>()), size_(tensor.shape[0]) {}

  int64_t Next() { return *Take(1); }
  // The next `count` numbers as they lie in memory.
  int32_t* Take(int64_t count) {
    Expect(count >= 0 && count <= size_ - position_, "the program ends within a stage");
    position_ += count;
    return numbers_ + position_ - count;
  }
  bool IsAtEnd() const { return position_ == size_; }

 private:
  int32_t* numbers_;
  int64_t size_;
  int64_t position_ = 0;
};

// The parameters of one stage, in the form of MindSpore's.
class StageCall {
 public:
  void Add(void* data, int ndim, int64_t* shape, const char* dtype) {
    Expect(count_ < kMaxOperands, "a stage has too many operands");
    params_[count_] = data;
    ndims_[count_] = ndim;
    shapes_[count_] = shape;
    dtypes_[count_++] = dtype;
  }
  int64_t NumRows(int64_t operand) const {
    Expect(operand >= 0 && operand < count_ && ndims_[operand] > 0,
           "a stage takes its rows from an operand that it does not have");
    return shapes_[operand][0];
  }
  AotCall Get() {
    return AotCall(count_, params_.data(), ndims_.data(), shapes_.data(), dtypes_.data());
  }

 private:
  int count_ = 0;
  std::array<void*, kMaxOperands> params_;
  std::array<int, kMaxOperands> ndims_;
  std::array<int64_t*, kMaxOperands> shapes_;
  std::array<const char*, kMaxOperands> dtypes_;
};

// Small operands that the program itself holds.
class Constants {
 public:
  explicit Constants(Program& program) : count_(program.Next()) {
    Expect(count_ >= 0 && count_ <= kMaxConstants, "the program has too many constants");
    for (int64_t i = 0; i < count_; ++i) {
      dtypes_[i] = program.Next() == 0 ? "int32" : "float32";
      sizes_[i] = program.Next();
      data_[i] = program.Take(sizes_[i]);
    }
  }
  void AddTo(StageCall& call, int64_t number) {
    call.Add(data_[number], 1, &sizes_[number], dtypes_[number]);
  }
  int64_t count() const { return count_; }

 private:
  int64_t count_;
  std::array<void*, kMaxConstants> data_;
  std::array<int64_t, kMaxConstants> sizes_;
  std::array<const char*, kMaxConstants> dtypes_;
};

// What the stages so far have made, place by place.
class Results {
 public:
  explicit Results(std::array<Scratch, kNumPlaces>& buffers) : buffers_(buffers) {}

  void AddTo(StageCall& call, int64_t place) {
    Expect(place < kNumPlaces && data_[place] != nullptr,
           [&] { return "no stage has left a result in place " + std::to_string(place); });
    call.Add(data_[place], 2, shapes_[place].data(), "float32");
  }
  void Make(StageCall& call, int64_t place, int64_t num_rows, int64_t width) {
    Expect(place >= 0 && place < kNumPlaces,
           [&] { return "there is no place " + std::to_string(place); });
    shapes_[place] = {num_rows, width};
    data_[place] = buffers_[place].Reserve<float>(num_rows * width);
    call.Add(data_[place], 2, shapes_[place].data(), "float32");
  }

 private:
  std::array<Scratch, kNumPlaces>& buffers_;
  std::array<void*, kNumPlaces> data_{};
  std::array<std::array<int64_t, 2>, kNumPlaces> shapes_{};
};

void RunStage(const OperatorEntry& entry, const AotCall& call) {
  try {
    entry.run(call);
  } catch (const std::exception& error) {
    throw std::invalid_argument(std::string(entry.symbol) + ": " + error.what());
  }
}

// inputs..., program i32[...] -> f32[rows, width] of the last stage.
// The program is the number of constants and of each its type (0: int32, 1: float32), size and
// bits; then the number of stages and of each: the operator's number, which of its operands has as
// many rows as its result, the result's width, the place that keeps the result (-1 for the output,
// which the last stage makes), the number of operands, and of each operand the number of the input,
// behind the inputs that of the constant, or -1 - p for what is kept in place p.
void RunProgram(int nparam, void** params, int* ndims, int64_t** shapes, const char** dtypes) {
  const AotCall call(nparam, params, ndims, shapes, dtypes);
  Expect(nparam >= 2, "called without a program");
  const int num_inputs = nparam - 2;
  const Tensor output = call.Get(-1, "output", 2, {DType::kF32});
  Program program(call.Get(-2, "program", 1, {DType::kI32}));
  Constants constants(program);
  const int64_t num_stages = program.Next();
  Expect(num_stages > 0, "the program has no stages");

  // Shared by all threads: MindSpore runs the first step of a graph on another than the rest, and
  // two threads would keep twice the activations of a prompt.
  static std::mutex mutex;
  static std::array<Scratch, kNumPlaces> buffers;
  const std::lock_guard<std::mutex> lock(mutex);
  Results results(buffers);
  for (int64_t stage = 0; stage < num_stages; ++stage) {
    const OperatorEntry& entry = GetOperator(program.Next());
    const int64_t rows_operand = program.Next(), width = program.Next(), place = program.Next();
    const int64_t num_operands = program.Next();
    StageCall stage_call;
    for (int64_t i = 0; i < num_operands; ++i) {
      const int64_t operand = program.Next();
      if (operand < 0) {
        Expect(-1 - operand != place, "a stage reads the place that its result goes to");
        results.AddTo(stage_call, -1 - operand);
      } else if (operand < num_inputs) {
        stage_call.Add(params[operand], ndims[operand], shapes[operand], dtypes[operand]);
      } else {
        Expect(operand - num_inputs < constants.count(),
               [&] { return "the program names input " + std::to_string(operand); });
        constants.AddTo(stage_call, operand - num_inputs);
      }
    }
    const int64_t num_rows = stage_call.NumRows(rows_operand);
    Expect(width >= 0, "a result has a negative width");
    Expect((place == kOutput) == (stage == num_stages - 1),
           "the last stage makes the output, and no other");
    if (place == kOutput) {
      ExpectSize(output, 0, num_rows);
      ExpectSize(output, 1, width);
      stage_call.Add(output.data, 2, shapes[nparam - 1], "float32");
    } else {
      results.Make(stage_call, place, num_rows, width);
    }
    RunStage(entry, stage_call.Get());
  }
  Expect(program.IsAtEnd(), "the program goes on behind its last stage");
}

}  // namespace
}  // namespace glm

GLM_EXPORT int glm_program(GLM_AOT_SIGNATURE) {
  return glm::RunAot("glm_program", [&] { glm::RunProgram(GLM_AOT_ARGUMENTS); });
}
