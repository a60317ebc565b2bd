// The features that this CPU has and the operating system enables, under the names that isas.py
// uses in `needs`.
#pragma once

#include <cstdint>

namespace tensor_ops {

struct CpuFeatures {
    bool avx2 = false, fma = false, f16c = false, avxvnni = false;
    bool avx512 = false;  // F, CD, BW, DQ and VL
    bool avx512vnni = false;
    bool amx_int8 = false;  // and the process may use the tile registers
    bool neon = false, dotprod = false, i8mm = false;
};

CpuFeatures detect_cpu_features();

#if defined(__x86_64__)
// What CPUID and XCR0 say, with zeros for what this CPU does not have.
struct CpuidLeaves {
    std::uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0, leaf7_1_eax = 0;
    std::uint64_t states = 0;  // of registers, that the operating system saves
};
CpuFeatures features_of(const CpuidLeaves& leaves);
#endif

}  // namespace tensor_ops
