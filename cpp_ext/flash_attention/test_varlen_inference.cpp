// Generation with sequences of different lengths, as a server runs it: their prompts in one call,
// then 16 steps of one token each. Keys and values are rotated, appended to a cache of pages, and
// seen. Results are compared with attention in float64, on the CPU and on the GPU if there is one.
//
//     test_varlen_inference [LONGEST]    length of the longest prompt (default: 2048)
//
// Exit status: 0 if both pass, 77 if the CPU does and there is no GPU, 1 otherwise.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#if defined(FA_WITH_CUDA)
#include <cuda_runtime.h>
#endif

#include "flash_attn.h"

namespace {

using Halves = std::vector<std::uint16_t>;

constexpr int heads = 4, kv_heads = 2, page = 64, steps = 16, checked_rows = 40;
// Twice the rounding of values and of rotated queries to float16, and of weights' sums.
constexpr double out_bound = 4e-3, lse_bound = 2e-3;

double value(std::uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size =
        exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return half & 0x8000 ? -size : size;
}

std::uint16_t half_of(double x) {
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    int exponent;
    std::frexp(x, &exponent);
    exponent = std::max(exponent, -13);  // below, the distance of numbers stays
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(std::abs(x), 11 - exponent)));
    return static_cast<std::uint16_t>(sign | (units + (exponent + 13) * 1024));
}

void check(fa_status status, const char* what) {
    if (status == FA_OK) return;
    std::fprintf(stderr, "%s: %s\n", what, fa_last_error());
    std::exit(1);
}

// Memory of a device, and the way there and back.
class Device {
 public:
    Device(fa_context* own, bool on_gpu) : context(own), is_gpu_(on_gpu) {}
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    ~Device() { release(); }

    template <class T>
    T* put(const std::vector<T>& host) {
        const std::size_t bytes = std::max<std::size_t>(host.size() * sizeof(T), 16);
        void* there = allocate(bytes);
        copy(there, host.data(), host.size() * sizeof(T), true);
        return static_cast<T*>(there);
    }
    template <class T>
    void get(std::vector<T>& host, const T* there) {
        copy(host.data(), there, host.size() * sizeof(T), false);
    }
    void release() {
        for (void* p : owned_) free_one(p);
        owned_.clear();
    }

    fa_context* const context;

 private:
    void* allocate(std::size_t bytes) {
        void* p = nullptr;
#if defined(FA_WITH_CUDA)
        if (is_gpu_ && cudaMalloc(&p, bytes) != cudaSuccess) std::exit(1);
#endif
        if (!p) p = std::malloc(bytes);
        owned_.push_back(p);
        return p;
    }
    void free_one(void* p) {
#if defined(FA_WITH_CUDA)
        if (is_gpu_) return void(cudaFree(p));
#endif
        std::free(p);
    }
    void copy(void* to, const void* from, std::size_t bytes, [[maybe_unused]] bool there) {
        if (bytes == 0) return;
#if defined(FA_WITH_CUDA)
        if (is_gpu_) {
            const auto way = there ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
            if (cudaMemcpy(to, from, bytes, way) != cudaSuccess) std::exit(1);
            return;
        }
#endif
        std::memcpy(to, from, bytes);
    }

    bool is_gpu_;
    std::vector<void*> owned_;
};

// The sequences, what their caches must hold by now, and the caches.
class Generation {
 public:
    Generation(Device& device, int d, int longest, unsigned seed)
        : device_(device), d_(d), random_(seed) {
        prompts_ = {0, 1, longest};
        for (int i = 0; i < 2; ++i)
            prompts_.push_back(std::uniform_int_distribution<int>(1, longest)(random_));
        const int n = batch();
        columns_ = (longest + steps + page - 1) / page;
        std::vector<std::int32_t> table(static_cast<std::size_t>(n * columns_));
        for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
        std::shuffle(table.begin(), table.end(), random_);
        table_ = device.put(table);
        const Halves cache(table.size() * page * static_cast<std::size_t>(kv_heads * d));
        k_ = device.put(cache);
        v_ = device.put(cache);
        const std::size_t positions = static_cast<std::size_t>(longest + steps);
        cos_.resize(positions * static_cast<std::size_t>(d / 2));
        sin_.resize(cos_.size());
        for (std::size_t i = 0; i < cos_.size(); ++i) {
            const auto pair = static_cast<double>(i % static_cast<std::size_t>(d / 2));
            const double angle = static_cast<double>(i / static_cast<std::size_t>(d / 2)) *
                                 std::pow(10000.0, -2.0 * pair / d);
            cos_[i] = static_cast<float>(std::cos(angle));
            sin_[i] = static_cast<float>(std::sin(angle));
        }
        keys_.resize(static_cast<std::size_t>(n));
        values_.resize(static_cast<std::size_t>(n));
        used_.assign(static_cast<std::size_t>(n), 0);
    }

    void run() {
        step(prompts_);
        for (int i = 0; i < steps; ++i) step(std::vector<int>(prompts_.size(), 1));
    }

    double worst = 0, worst_lse = 0;

 private:
    int batch() const { return static_cast<int>(prompts_.size()); }

    Halves random_halves(std::size_t n) {
        std::normal_distribution<double> normal;
        Halves x(n);
        for (std::uint16_t& each : x) each = half_of(normal(random_));
        return x;
    }

    // One head's row, rotated by the angles of a position and rounded as caches hold it.
    std::vector<double> rotated(const std::uint16_t* row, int position) const {
        std::vector<double> y(static_cast<std::size_t>(d_));
        const int half = d_ / 2;
        for (int i = 0; i < half; ++i) {
            const auto at = static_cast<std::size_t>(position * half + i);
            const double a = value(row[i]), b = value(row[i + half]);
            const double c = static_cast<double>(cos_[at]), s = static_cast<double>(sin_[at]);
            y[static_cast<std::size_t>(i)] = value(half_of(a * c - b * s));
            y[static_cast<std::size_t>(i + half)] = value(half_of(b * c + a * s));
        }
        return y;
    }

    // Appends that many tokens of each sequence and attends to all of its keys.
    void step(const std::vector<int>& tokens) {
        const int n = batch();
        std::vector<std::int32_t> starts(static_cast<std::size_t>(n) + 1), used = used_;
        for (int b = 0; b < n; ++b)
            starts[static_cast<std::size_t>(b) + 1] =
                starts[static_cast<std::size_t>(b)] + tokens[static_cast<std::size_t>(b)];
        const int total = starts.back();
        const auto rows = static_cast<std::size_t>(total);
        const auto width = static_cast<std::size_t>(d_);
        const Halves q = random_halves(rows * heads * width);
        const Halves k = random_halves(rows * kv_heads * width);
        const Halves v = random_halves(rows * kv_heads * width);
        Halves out(q.size());
        std::vector<float> lse(rows * heads);

        fa_fwd_params p = fa_fwd_defaults();
        p.flags = FA_CAUSAL;
        p.batch = n;
        p.max_seqlen_q = *std::max_element(tokens.begin(), tokens.end());
        std::uint16_t* const there = device_.put(out);
        float* const lse_there = device_.put(lse);
        p.q = fa_contiguous(device_.put(q), FA_F16, 3, total, heads, d_, 1);
        p.k_new = fa_contiguous(device_.put(k), FA_F16, 3, total, kv_heads, d_, 1);
        p.v_new = fa_contiguous(device_.put(v), FA_F16, 3, total, kv_heads, d_, 1);
        p.k = fa_contiguous(k_, FA_F16, 4, n * columns_, page, kv_heads, d_);
        p.v = fa_contiguous(v_, FA_F16, 4, n * columns_, page, kv_heads, d_);
        p.out = fa_contiguous(there, FA_F16, 3, total, heads, d_, 1);
        p.lse = fa_contiguous(lse_there, FA_F32, 2, heads, total, 1, 1);
        const auto positions = static_cast<std::int64_t>(cos_.size() / (width / 2));
        p.rotary_cos = fa_contiguous(device_.put(cos_), FA_F32, 2, positions, d_ / 2, 1, 1);
        p.rotary_sin = fa_contiguous(device_.put(sin_), FA_F32, 2, positions, d_ / 2, 1, 1);
        p.cu_seqlens_q = p.cu_seqlens_k_new = device_.put(starts);
        p.seqused_k = device_.put(used);
        p.page_table = table_;
        p.page_table_columns = columns_;
        std::uint64_t bytes = 0;
        check(fa_fwd_workspace(device_.context, &p, &bytes), "fa_fwd_workspace");
        p.workspace = device_.put(std::vector<char>(bytes));
        p.workspace_bytes = bytes;
        check(fa_fwd(device_.context, &p, nullptr), "fa_fwd");
        device_.get(out, there);
        device_.get(lse, lse_there);

        for (int b = 0; b < n; ++b) {
            const auto i = static_cast<std::size_t>(b);
            for (int t = 0; t < tokens[i]; ++t)
                for (int h = 0; h < kv_heads; ++h) {
                    const auto row = static_cast<std::size_t>((starts[i] + t) * kv_heads + h);
                    const auto key = rotated(&k[row * width], used_[i] + t);
                    keys_[i].insert(keys_[i].end(), key.begin(), key.end());
                    for (std::size_t c = 0; c < width; ++c)
                        values_[i].push_back(value(v[row * width + c]));
                }
            const int every = std::max(1, tokens[i] / checked_rows);
            for (int t = tokens[i] - 1; t >= 0; t -= every)
                for (int h = 0; h < heads; ++h) {
                    const auto row = static_cast<std::size_t>((starts[i] + t) * heads + h);
                    compare(i, h, used_[i] + t, &q[row * width], &out[row * width],
                            static_cast<double>(
                                lse[static_cast<std::size_t>(h * total + starts[i] + t)]));
                }
            used_[i] += tokens[i];
        }
    }

    // One query at that position, which sees all keys up to its own.
    void compare(std::size_t sequence, int head, int position, const std::uint16_t* q,
                 const std::uint16_t* out, double lse) {
        const auto width = static_cast<std::size_t>(d_);
        const std::vector<double> query = rotated(q, position);
        const std::size_t offset = static_cast<std::size_t>(head / (heads / kv_heads)) * width;
        const std::size_t step = kv_heads * width;
        std::vector<double> scores, sum(width);
        for (int j = 0; j <= position; ++j) {
            const double* key = &keys_[sequence][static_cast<std::size_t>(j) * step + offset];
            double dot = 0;
            for (std::size_t c = 0; c < width; ++c) dot += query[c] * key[c];
            scores.push_back(dot / std::sqrt(d_));
        }
        const double top = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (std::size_t j = 0; j < scores.size(); ++j) {
            const double weight = std::exp(scores[j] - top);
            total += weight;
            const double* row = &values_[sequence][j * step + offset];
            for (std::size_t c = 0; c < width; ++c) sum[c] += weight * row[c];
        }
        for (std::size_t c = 0; c < width; ++c)
            note(worst, std::abs(value(out[c]) - sum[c] / total));
        note(worst_lse, std::abs(lse - (top + std::log(total))));
    }

    static void note(double& largest, double error) {
        if (!(error <= largest)) largest = std::isnan(error) ? INFINITY : error;
    }

    Device& device_;
    int d_, columns_ = 0;
    std::mt19937 random_;
    std::vector<int> prompts_;
    std::vector<std::int32_t> used_;
    std::int32_t* table_ = nullptr;
    std::uint16_t *k_ = nullptr, *v_ = nullptr;
    std::vector<float> cos_, sin_;
    std::vector<std::vector<double>> keys_, values_;  // [position][KV head][d]
};

bool passes(const char* name, fa_context* context, bool is_gpu, int longest) {
    bool good = true;
    for (const int d : {64, 96, 128, 192, 256}) {
        Device device(context, is_gpu);
        Generation generation(device, d, longest, static_cast<unsigned>(d));
        generation.run();
        const bool fine = generation.worst <= out_bound && generation.worst_lse <= lse_bound;
        std::printf("%s, heads of %d: largest error %.1e, of lse %.1e%s\n", name, d,
                    generation.worst, generation.worst_lse, fine ? "" : "  TOO LARGE");
        good &= fine;
    }
    return good;
}

}  // namespace

int main(int n_arguments, char** arguments) {
    const int longest = n_arguments > 1 ? std::atoi(arguments[1]) : 2048;
    if (longest < 1) {
        std::fprintf(stderr, "usage: test_varlen_inference [LONGEST]\n");
        return 2;
    }
    fa_context* context = nullptr;
    check(fa_context_create("cpu", &context), "fa_context_create");
    bool good = passes("cpu", context, false, longest);
    fa_context_destroy(context);
    const fa_status found = fa_context_create("cuda:0", &context);
    if (found != FA_OK) {
        std::printf("no GPU: %s\n", fa_last_error());
        return good ? 77 : 1;
    }
    good &= passes("cuda:0", context, true, longest);
    fa_context_destroy(context);
    return good ? 0 : 1;
}
