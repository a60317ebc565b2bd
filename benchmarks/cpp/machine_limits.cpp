#include "machine_limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cpu_features.h"

namespace limits {

// From build.py: of each ISA a TENSOR_OPS_ISA(name, condition on cpu, ...), slowest first.
#define TENSOR_OPS_ISA(name, condition, ...) extern const Peaks name##_peaks;
TENSOR_OPS_COMPILED_ISAS
#undef TENSOR_OPS_ISA

namespace {

std::vector<const Peaks*> runnable() {
    [[maybe_unused]] const tensor_ops::CpuFeatures cpu = tensor_ops::detect_cpu_features();
    std::vector<const Peaks*> peaks;
#define TENSOR_OPS_ISA(name, condition, ...) \
    if (condition) peaks.push_back(&name##_peaks);
    TENSOR_OPS_COMPILED_ISAS
#undef TENSOR_OPS_ISA
    return peaks;
}

double now() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Runs f(0) to f(threads - 1) at once; the threads' start is not counted.
template <class F>
double timed(std::size_t threads, F f) {
    std::atomic<std::size_t> ready{0};
    std::vector<double> end(threads);
    double start = 0.0;
    const auto body = [&](std::size_t index) {
        ready.fetch_add(1);
        while (ready.load() < threads) {
        }
        if (index == 0) start = now();
        f(index);
        end[index] = now();
    };
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < threads; ++i) others.emplace_back(body, i);
    body(0);
    for (std::thread& thread : others) thread.join();
    return *std::max_element(end.begin(), end.end()) - start;
}

template <class F>
double rate(std::size_t threads, F operations) {
    std::vector<double> done(threads);
    const double seconds = timed(threads, [&](std::size_t i) { done[i] = operations(); });
    double total = 0.0;
    for (const double d : done) total += d;
    return total / seconds;
}

struct Part {
    std::size_t begin, size;
};

Part part_of(std::size_t bytes, std::size_t index, std::size_t threads) {
    constexpr std::size_t line = 64;
    const std::size_t lines = bytes / line;
    const std::size_t first = lines * index / threads, last = lines * (index + 1) / threads;
    return {first * line, (last - first) * line};
}

}  // namespace

const Peaks* find_peaks(std::string_view isa) {
    for (const Peaks* peaks : runnable())
        if (isa == peaks->isa) return peaks;
    return nullptr;
}

const char* available_isas() {
    static const std::string names = [] {
        std::string list;
        for (const Peaks* peaks : runnable()) {
            if (!list.empty()) list += ',';
            list += peaks->isa;
        }
        return list;
    }();
    return names.c_str();
}

double read_seconds(const Peaks& peaks, const std::byte* data, std::size_t bytes,
                    std::size_t streams, std::size_t threads) {
    std::atomic<std::int32_t> sum{0};
    return timed(threads, [&](std::size_t i) {
        const Part part = part_of(bytes, i, threads);
        sum += peaks.read(data + part.begin, part.size, streams);
    });
}

double copy_seconds(std::byte* to, const std::byte* from, std::size_t bytes, std::size_t threads) {
    return timed(threads, [&](std::size_t i) {
        const Part part = part_of(bytes, i, threads);
        std::memcpy(to + part.begin, from + part.begin, part.size);
    });
}

double multiply_add_rate(const Peaks& peaks, std::size_t rounds, std::size_t threads) {
    return rate(threads, [&] { return peaks.multiply_add(rounds); });
}

double dot_int8_rate(const Peaks& peaks, std::size_t rounds, std::size_t threads) {
    return rate(threads, [&] { return peaks.dot_int8(rounds); });
}

}  // namespace limits
