// For a CPU that has vpdpbusd on 256 bits with AVX-512's encoding, not with AVX-VNNI's: makes
// isa/avxvnni.cpp use the former.
#pragma once

#include <immintrin.h>  // first, so that it defines its own function by that name

static inline __m256i dpbusd_by_avx512(__m256i sum, __m256i a, __m256i b) {
    __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}

#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 dpbusd_by_avx512
