// Chooses the instruction set, once, by what the processor and the operating system offer.
#include <atomic>
#include <cstring>

#include "aot.h"
#include "kernel_table.h"

#if defined(GLM_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(GLM_AARCH64)
#include <sys/auxv.h>
#endif

namespace glm {
namespace {

// Raised whenever an exported symbol, its parameters or a tensor layout changes; library.py holds
// the same number.
constexpr int kAbiVersion = 16;

#if defined(GLM_X86)
// Which register states the operating system saves (XCR0), read by XGETBV.
uint64_t ReadXcr0() {
  uint32_t eax, edx;
  __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return static_cast<uint64_t>(edx) << 32 | eax;
}

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA and F16C, usable
  bool avx512 = false;  // F, DQ, BW, VL, VNNI and BF16, usable
  bool amx = false;     // TILE, INT8 and BF16, usable

  // Bits: Intel SDM volume 2A, CPUID leaves 1 and 7; XCR0: volume 1, 13.3.
  CpuFeatures() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return;  // OSXSAVE
    const uint64_t xcr0 = ReadXcr0();
    const bool has_fma_f16c = (c & 1u << 12) && (c & 1u << 29);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const uint32_t most_subleaf = a;
    constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 3ull << 17;
    avx2 = has_fma_f16c && (b & 1u << 5) && (xcr0 & kAvxState) == kAvxState;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const bool has_tiles = (d & 1u << 24) && (d & 1u << 25) && (d & 1u << 22);
    const bool has_avx512 = (b & f_dq_bw_vl) == f_dq_bw_vl && (c & 1u << 11);  // VNNI
    if (most_subleaf < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
    const bool has_bf16 = a & 1u << 5;
    avx512 = avx2 && has_avx512 && has_bf16 && (xcr0 & kAvx512State) == kAvx512State;
    amx = avx512 && has_tiles && (xcr0 & kTileState) == kTileState && RequestTiles();
  }

  // Linux gives a process the large tile registers only when asked (arch_prctl(2)).
  static bool RequestTiles() {
    constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
  }
};
#endif

// The tables this machine can run, the best one first; the last is only taken when asked for.
struct Available {
  const KernelTable* tables[5];
  int count = 0;

  Available() {
#if defined(GLM_X86)
    const CpuFeatures cpu;
    if (cpu.amx) tables[count++] = &kAmxTable;
    if (cpu.avx512) tables[count++] = &kAvx512Table;
    if (cpu.avx2) tables[count++] = &kAvx2Table;
#elif defined(GLM_AARCH64)
    // HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16 of Linux' arch/arm64/include/uapi/asm/hwcap.h
    constexpr unsigned long kDotprod = 1ul << 20, kI8mmBf16 = 1ul << 13 | 1ul << 14;
    const bool has_dotprod = getauxval(AT_HWCAP) & kDotprod;
    const bool has_bf16 = (getauxval(AT_HWCAP2) & kI8mmBf16) == kI8mmBf16;
    if (has_dotprod && has_bf16) tables[count++] = &kNeonBf16Table;
    if (has_dotprod) tables[count++] = &kNeonDotprodTable;
    tables[count++] = &kNeonTable;
#endif
    tables[count++] = &kPortableTable;
#if defined(GLM_X86)
    if (cpu.avx512) tables[count++] = &kAmxEmulatedTable;
#endif
  }
};

const Available& GetAvailable() {
  static const Available available;
  return available;
}

std::atomic<const KernelTable*> selected{nullptr};

}  // namespace

const KernelTable& Kernels() {
  const KernelTable* table = selected.load(std::memory_order_acquire);
  return table != nullptr ? *table : *GetAvailable().tables[0];
}

}  // namespace glm

GLM_EXPORT int glm_abi_version() { return glm::kAbiVersion; }

// Hash of the C++ sources this library was built from (setup.py).
GLM_EXPORT const char* glm_source_hash() { return GLM_SOURCE_HASH; }

// The compiler that built this library, by its name and version.
GLM_EXPORT const char* glm_compiler() {
#if defined(__clang__)
#define GLM_TEXT(...) #__VA_ARGS__
#define GLM_VERSION(major, minor, patch) GLM_TEXT(major.minor.patch)
  return "clang " GLM_VERSION(__clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  return "g++ " __VERSION__;
#endif
}

// The instruction sets of this kind of processor that the compiler could not build, most often "".
GLM_EXPORT const char* glm_left_out() {
#if defined(__x86_64__) && !defined(GLM_X86)
  return "avx2, avx512, amx";
#elif defined(__aarch64__) && !defined(GLM_AARCH64)
  return "neon, neon_dotprod, neon_bf16";
#else
  return "";
#endif
}

GLM_EXPORT const char* glm_isa() { return glm::Kernels().name; }

// Name of the index-th instruction set this machine can run, nullptr past the last.
GLM_EXPORT const char* glm_available_isa(int index) {
  const glm::Available& available = glm::GetAvailable();
  return index >= 0 && index < available.count ? available.tables[index]->name : nullptr;
}

// Returns 0, or 1 where this machine cannot run it; then nothing changes.
GLM_EXPORT int glm_select_isa(const char* name) {
  const glm::Available& available = glm::GetAvailable();
  for (int i = 0; name != nullptr && i < available.count; ++i) {
    if (std::strcmp(available.tables[i]->name, name) == 0) {
      glm::selected.store(available.tables[i], std::memory_order_release);
      return 0;
    }
  }
  return 1;
}

// setuptools builds Python extensions; the module is never imported, only opened (library.py).
GLM_EXPORT void* PyInit__kernels() { return nullptr; }
