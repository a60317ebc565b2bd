// The limits for Python: a plain C interface, called through ctypes by common/limits.py.
// An unknown ISA gives a negative number.
#include "machine_limits.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* limits_available_isas() { return limits::available_isas(); }

EXPORT double limits_read_seconds(const char* isa, const void* data, std::size_t bytes,
                                  std::size_t streams, std::size_t threads) {
    const limits::Peaks* peaks = limits::find_peaks(isa);
    if (!peaks) return -1.0;
    return limits::read_seconds(*peaks, static_cast<const std::byte*>(data), bytes, streams,
                                threads);
}

EXPORT double limits_copy_seconds(void* to, const void* from, std::size_t bytes,
                                  std::size_t threads) {
    return limits::copy_seconds(static_cast<std::byte*>(to), static_cast<const std::byte*>(from),
                                bytes, threads);
}

EXPORT double limits_multiply_add_rate(const char* isa, std::size_t rounds, std::size_t threads) {
    const limits::Peaks* peaks = limits::find_peaks(isa);
    return peaks ? limits::multiply_add_rate(*peaks, rounds, threads) : -1.0;
}

EXPORT double limits_dot_int8_rate(const char* isa, std::size_t rounds, std::size_t threads) {
    const limits::Peaks* peaks = limits::find_peaks(isa);
    return peaks ? limits::dot_int8_rate(*peaks, rounds, threads) : -1.0;
}
