#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace tensor_ops {

#if defined(__x86_64__)

namespace {

bool all_set(std::uint64_t value, std::uint64_t bits) { return (value & bits) == bits; }

// Which register states the operating system saves (XCR0).  Only with OSXSAVE.
std::uint64_t enabled_states() {
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32 | low;
}

// Asks Linux for the tile registers: a process has none until it asks.  Threads and children
// inherit the answer.
bool request_tiles() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM, since Linux 5.16
    constexpr long tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

}  // namespace

CpuFeatures features_of(const CpuidLeaves& leaves) {
    CpuFeatures f;
    const bool ymm = all_set(leaves.states, 0x6);   // SSE and AVX
    const bool zmm = all_set(leaves.states, 0xe6);  // and opmask, upper halves, upper registers
    f.fma = ymm && all_set(leaves.leaf1_ecx, 1u << 12);
    f.f16c = ymm && all_set(leaves.leaf1_ecx, 1u << 29);
    f.avx2 = ymm && all_set(leaves.leaf7_ebx, 1u << 5);
    f.avx512 =
        zmm && all_set(leaves.leaf7_ebx, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31);
    f.avx512vnni = zmm && all_set(leaves.leaf7_ecx, 1u << 11);
    f.amx_int8 = zmm && all_set(leaves.states, 0x60000) &&  // tiles, and how they are set up
                 all_set(leaves.leaf7_edx, 1u << 24 | 1u << 25);
    f.avxvnni = ymm && all_set(leaves.leaf7_1_eax, 1u << 4);
    return f;
}

CpuFeatures detect_cpu_features() {
    constexpr std::uint32_t osxsave = 1u << 27;
    CpuidLeaves leaves;
    std::uint32_t a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) leaves.leaf1_ecx = c;
    if (leaves.leaf1_ecx & osxsave) leaves.states = enabled_states();
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        leaves.leaf7_ebx = b;
        leaves.leaf7_ecx = c;
        leaves.leaf7_edx = d;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) leaves.leaf7_1_eax = a;
    }
    CpuFeatures f = features_of(leaves);
    f.amx_int8 = f.amx_int8 && request_tiles();
    return f;
}

#elif defined(__aarch64__)

CpuFeatures detect_cpu_features() {
    CpuFeatures f;
    f.neon = true;  // part of the AArch64 baseline
#if defined(__linux__)
    f.dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
    constexpr unsigned long i8mm = 1ul << 13;  // HWCAP2_I8MM, which headers before Linux 5.6 lack
    f.i8mm = getauxval(AT_HWCAP2) & i8mm;
#elif defined(__APPLE__)
    f.dotprod = true;  // every Apple silicon Mac has it
#endif
    return f;
}

#else

CpuFeatures detect_cpu_features() { return {}; }

#endif

}  // namespace tensor_ops
