#include "bench.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

#include "dispatch.h"
#include "machine_limits.h"

namespace bench {
namespace {

constexpr std::size_t beyond_caches = 256u << 20;
constexpr std::size_t copied_bytes = 32u << 20;
constexpr int probes = 10;
// Without vectors, more would take seconds a call.
constexpr double most_scalar_operations = 1e9;

const char* title(Limit limit) {
    switch (limit) {
        case Limit::read: return "of_read";
        case Limit::copy: return "of_memcpy";
        case Limit::multiply_add: return "of_fma_peak";
        case Limit::dot: return "of_dot_peak";
        case Limit::none: break;
    }
    return "";
}

double probe(Limit limit, const limits::Peaks& peaks, std::size_t threads) {
    static std::vector<std::byte> memory(beyond_caches, std::byte{1});
    constexpr std::size_t rounds = 20000;  // about a millisecond
    switch (limit) {
        case Limit::read: {
            double best = 0.0;
            for (const std::size_t streams : {1u, 2u, 4u}) {
                const double seconds =
                    limits::read_seconds(peaks, memory.data(), memory.size(), streams, threads);
                best = std::max(best, static_cast<double>(memory.size()) / seconds);
            }
            return best;
        }
        case Limit::copy:
            return 2.0 * copied_bytes /
                   limits::copy_seconds(memory.data() + beyond_caches / 2, memory.data(),
                                        copied_bytes, threads);
        case Limit::multiply_add: return limits::multiply_add_rate(peaks, rounds, threads);
        case Limit::dot: return limits::dot_int8_rate(peaks, rounds, threads);
        case Limit::none: break;
    }
    return 0.0;
}

std::vector<int> thread_counts() {
    const int all = tensor_ops::num_threads();
    return all > 1 ? std::vector<int>{1, all} : std::vector<int>{1};
}

void run(benchmark::State& state, const std::string& isa, int threads, const Work& work,
         const Prepare& prepare) {
    tensor_ops::select_isa(isa);
    tensor_ops::set_num_threads(threads);
    const Operation operation = prepare(tensor_ops::kernels());
    std::size_t iteration = 0;
    for ([[maybe_unused]] auto _ : state) {
        tensor_ops::run_team(
            [&](const tensor_ops::Worker& worker) { operation(worker, iteration); });
        ++iteration;
    }
    using benchmark::Counter;
    state.counters["operations"] = Counter(work.operations, Counter::kIsIterationInvariantRate);
    if (work.limit != Limit::none)
        state.counters[title(work.limit)] = Counter(
            work.amount / limit_rate(work.limit, isa, threads), Counter::kIsIterationInvariantRate);
}

}  // namespace

double limit_rate(Limit limit, const std::string& isa, int threads) {
    static std::map<std::tuple<Limit, std::string, int>, double> known;
    const auto [entry, is_new] = known.try_emplace({limit, isa, threads}, 0.0);
    for (int i = 0; is_new && i < probes; ++i)
        entry->second = std::max(entry->second, probe(limit, *limits::find_peaks(isa),
                                                      static_cast<std::size_t>(threads)));
    return entry->second;
}

void add(const std::string& name, const Work& work, const Prepare& prepare) {
    for (const std::string& isa : tensor_ops::available_isas()) {
        if (isa == "scalar" && work.operations > most_scalar_operations) continue;
        for (const int threads : thread_counts()) {
            const std::string full = name + "/" + isa + "/threads:" + std::to_string(threads);
            benchmark::RegisterBenchmark(full.c_str(), [=](benchmark::State& state) {
                run(state, isa, threads, work, prepare);
            })->UseRealTime();
        }
    }
}

void add_limits() {
    using Probe = std::tuple<const char*, Limit>;
    for (const auto& [name, limit] : {Probe{"read", Limit::read}, Probe{"memcpy", Limit::copy},
                                      Probe{"fma", Limit::multiply_add}, Probe{"dot", Limit::dot}})
        for (const std::string& isa : tensor_ops::available_isas())
            for (const int threads : thread_counts()) {
                const std::string full = std::string("limit/") + name + "/" + isa +
                                         "/threads:" + std::to_string(threads);
                benchmark::RegisterBenchmark(full.c_str(),
                                             [=, limit = limit](benchmark::State& state) {
                                                 double rate = 0.0;
                                                 for ([[maybe_unused]] auto _ : state)
                                                     rate = limit_rate(limit, isa, threads);
                                                 state.counters["rate"] = rate;
                                             })
                    ->Iterations(1)
                    ->Repetitions(1);
            }
}

std::string dimensions(std::initializer_list<std::size_t> sizes) {
    std::string text;
    for (const std::size_t size : sizes) {
        text += text.empty() ? '/' : 'x';
        text += std::to_string(size);
    }
    return text;
}

std::vector<float> normal(std::size_t n, float deviation) {
    std::mt19937 generator(1);
    std::normal_distribution<float> distribution(0.0f, deviation);
    std::vector<float> values(n);
    for (float& value : values) value = distribution(generator);
    return values;
}

std::size_t cycles(std::size_t bytes) {
    return std::max<std::size_t>(1, (beyond_caches + bytes - 1) / bytes);
}

}  // namespace bench

int main(int argc, char** argv) {
    bench::add_limits();
    bench::add_elementwise();
    bench::add_products();
    bench::add_attention();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
}
