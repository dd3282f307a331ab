// The kernels as a program of their own: reads calls from standard input, runs them, and writes the
// results to standard output. Linked statically for another processor, it runs under an emulator;
// tests/kernels/emulated/library.py is the other end.
//
// All numbers are little-endian int64. A call is: symbol, number of arguments, arguments; an
// argument is: dtype, ndim, shape, data; symbol, dtype and data are: length, bytes. The answer is:
// the return value, then the data of every argument, which the function may have changed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "symbols.h"

extern "C" {
const char* glm_isa();
const char* glm_available_isa(int index);
int glm_select_isa(const char* name);
int glm_num_threads();
void glm_set_num_threads(int count);
int glm_pack_rows(void* dst, int dst_dtype, const void* src, int src_dtype, int64_t rows, int64_t k,
                  int64_t row_offset, int64_t tile_stride, int64_t tile_first);
int glm_quantize_rows(void* tiles, float* scales, const void* src, int src_dtype, int bits,
                      int64_t group_size, int64_t rows, int64_t k, int64_t row_offset,
                      int64_t tile_stride, int64_t tile_first, const float* row_maxima,
                      int64_t kept_begin, int64_t kept_end);
int glm_convert(void* dst, int dst_dtype, const void* src, int src_dtype, int64_t count);
}

namespace {

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "kernel server: %s\n", message.c_str());
  std::exit(2);
}

void Read(void* data, size_t bytes) {
  if (std::fread(data, 1, bytes, stdin) != bytes) Fail("the input ends within a call");
}
int64_t ReadCount() {
  int64_t count;
  Read(&count, sizeof(count));
  if (count < 0) Fail("negative count");
  return count;
}
std::string ReadString() {
  std::string text(ReadCount(), '\0');
  Read(text.data(), text.size());
  return text;
}

// malloc and vector<char> align to 16 bytes: as little as NumPy does.
struct Argument {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<char> data;

  int64_t Number() const {
    int64_t value;
    if (data.size() != sizeof(value)) Fail("an argument is not a number");
    std::memcpy(&value, data.data(), sizeof(value));
    return value;
  }
};

Argument ReadArgument() {
  Argument argument;
  argument.dtype = ReadString();
  argument.shape.resize(ReadCount());
  for (int64_t& size : argument.shape) size = ReadCount();
  const int64_t size = ReadCount();
  argument.data.reserve(size + 1);  // an empty array has an address too
  argument.data.resize(size);
  Read(argument.data.data(), argument.data.size());
  return argument;
}

using Arguments = std::vector<Argument>;

int64_t CallOperator(AotFunction function, Arguments& arguments) {
  std::vector<void*> params;
  std::vector<int> ndims;
  std::vector<int64_t*> shapes;
  std::vector<const char*> dtypes;
  for (Argument& argument : arguments) {
    params.push_back(argument.data.data());
    ndims.push_back(static_cast<int>(argument.shape.size()));
    shapes.push_back(argument.shape.data());
    dtypes.push_back(argument.dtype.c_str());
  }
  return function(static_cast<int>(arguments.size()), params.data(), ndims.data(), shapes.data(),
                  dtypes.data(), nullptr, nullptr);
}

int64_t CopyText(const char* text, Argument& to) {
  if (text == nullptr) return 1;
  to.data.assign(text, text + std::strlen(text));
  return 0;
}

// What is exported and no operator must come before the table, which holds these names too.
int64_t Call(const std::string& symbol, Arguments& a) {
  if (symbol == "glm_isa") return CopyText(glm_isa(), a.at(0));
  if (symbol == "glm_available_isa") {
    return CopyText(glm_available_isa(static_cast<int>(a.at(1).Number())), a.at(0));
  }
  if (symbol == "glm_select_isa") {
    return glm_select_isa(std::string(a.at(0).data.begin(), a.at(0).data.end()).c_str());
  }
  if (symbol == "glm_num_threads") return glm_num_threads();
  if (symbol == "glm_set_num_threads") {
    glm_set_num_threads(static_cast<int>(a.at(0).Number()));
    return 0;
  }
  if (symbol == "glm_pack_rows") {
    return glm_pack_rows(a.at(0).data.data(), static_cast<int>(a.at(1).Number()),
                         a.at(2).data.data(), static_cast<int>(a.at(3).Number()), a.at(4).Number(),
                         a.at(5).Number(), a.at(6).Number(), a.at(7).Number(), a.at(8).Number());
  }
  if (symbol == "glm_quantize_rows") {
    const float* row_maxima = reinterpret_cast<float*>(a.at(11).data.data());
    if (a.at(11).data.empty()) row_maxima = nullptr;
    return glm_quantize_rows(a.at(0).data.data(), reinterpret_cast<float*>(a.at(1).data.data()),
                             a.at(2).data.data(), static_cast<int>(a.at(3).Number()),
                             static_cast<int>(a.at(4).Number()), a.at(5).Number(), a.at(6).Number(),
                             a.at(7).Number(), a.at(8).Number(), a.at(9).Number(),
                             a.at(10).Number(), row_maxima, a.at(12).Number(), a.at(13).Number());
  }
  if (symbol == "glm_convert") {
    return glm_convert(a.at(0).data.data(), static_cast<int>(a.at(1).Number()),
                       a.at(2).data.data(), static_cast<int>(a.at(3).Number()), a.at(4).Number());
  }
  for (const auto& [name, function] : kOperators) {
    if (symbol == name) return CallOperator(function, a);
  }
  Fail("there is no function " + symbol);
}

void Write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, stdout) != bytes) Fail("cannot write the answer");
}

}  // namespace

int main() {
  for (int next; (next = std::getc(stdin)) != EOF;) {
    std::ungetc(next, stdin);
    const std::string symbol = ReadString();
    Arguments arguments(ReadCount());
    for (Argument& argument : arguments) argument = ReadArgument();
    const int64_t result = Call(symbol, arguments);
    Write(&result, sizeof(result));
    for (const Argument& argument : arguments) {
      const int64_t size = argument.data.size();
      Write(&size, sizeof(size));
      Write(argument.data.data(), argument.data.size());
    }
    std::fflush(stdout);
  }
  return 0;
}
