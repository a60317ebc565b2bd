// The limits that benchmarks are measured against: what this machine can read, copy, multiply and
// dot at most.  Probed with code that does nothing else, so that no kernel can be faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace limits {

// What one thread of an ISA can do; peaks/<isa>.cpp fills it with that ISA's flags.
struct Peaks {
    const char* isa;
    // `rounds` rounds of multiply-adds (8-bit dot products) on registers, as many independent ones
    // as hide the latency.  Returns the operations done: a multiplication and an addition are two.
    double (*multiply_add)(std::size_t rounds);
    double (*dot_int8)(std::size_t rounds);
    // Reads all of the data, from `streams` (1, 2 or 4) places at once: which is fastest is the
    // prefetchers' business.  The result depends on all that was read.
    std::int32_t (*read)(const std::byte* data, std::size_t bytes, std::size_t streams);
};

// The peaks of an ISA that runs here, nullptr for another name.
const Peaks* find_peaks(std::string_view isa);
// The names, slowest first.
const char* available_isas();  // "scalar,avx2"

// Each does its share of one piece of work on every one of `threads` threads and returns the
// seconds from the common start to the last one's end; `streams` and `rounds` as above.
double read_seconds(const Peaks& peaks, const std::byte* data, std::size_t bytes,
                    std::size_t streams, std::size_t threads);
double copy_seconds(std::byte* to, const std::byte* from, std::size_t bytes, std::size_t threads);
// Operations a second of all threads together.
double multiply_add_rate(const Peaks& peaks, std::size_t rounds, std::size_t threads);
double dot_int8_rate(const Peaks& peaks, std::size_t rounds, std::size_t threads);

}  // namespace limits
