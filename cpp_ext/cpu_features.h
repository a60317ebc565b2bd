// The features that this CPU has and the operating system enables, under the names that isas.py
// uses in `needs`.
#pragma once

namespace tensor_ops {

struct CpuFeatures {
    bool avx2 = false, fma = false, f16c = false, avxvnni = false;
    bool avx512 = false;  // F, CD, BW, DQ and VL
    bool avx512vnni = false;
    bool neon = false, dotprod = false;
};

CpuFeatures detect_cpu_features();

}  // namespace tensor_ops
