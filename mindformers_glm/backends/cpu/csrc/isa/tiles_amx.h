// The eight AMX tile registers, used as 16 rows of 64 bytes each (Intel SDM volume 1, chapter 18).
//
// Written in assembly rather than with the compiler's intrinsics: GCC 12's `_tile_loadconfig` says
// that it reads 8 of the 64 bytes, so that the stores of the others are dropped (and the processor
// faults), and its `_tile_loadd` does not say that it reads memory at all.
#pragma once

#include <cstdint>

namespace glm::GLM_ISA {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[8] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint16_t reserved_row_bytes[8] = {};
  uint8_t rows[8] = {16, 16, 16, 16, 16, 16, 16, 16};
  uint8_t reserved_rows[8] = {};
};
static_assert(sizeof(TileConfig) == 64, "ldtilecfg reads 64 bytes");

struct HardwareTiles {
  static void Configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  // Back to the initial state, so that the operating system need not save 8 KiB per switch.
  static void Release() { asm volatile("tilerelease" ::); }

  template <int T>
  static void Zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static void Load(const void* base, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static void Store(void* base, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  // C += A . B: row m of A and column n of B are 16 pairs of bfloat16; B holds a pair in 4 bytes.
  template <int C, int A, int B>
  static void Dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  // C += A . B of bytes in fours, A with sign and B without; sums of 32 bits.
  template <int C, int A, int B>
  static void DotSignedUnsigned() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  // The same, both with sign.
  template <int C, int A, int B>
  static void DotSigned() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace glm::GLM_ISA
