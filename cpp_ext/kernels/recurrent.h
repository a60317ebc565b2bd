// Kernels of recurrent layers: a short causal convolution, the gated delta rule (arXiv:2412.06464;
// with a decay for each key channel arXiv:2510.26692), the scan of Mamba-2 (arXiv:2405.21060), and
// the functions of their gates.
//
// Everything goes token by token, and each element of a state has one order of operations.  So the
// bits of a result do not depend on how tokens are divided among calls.
#pragma once

#include "kernels.h"
#include "kernels/rows.h"

namespace tensor_ops {
namespace {

// log(1 + x) for x from 0 to 1, with a relative error below 4u.  log(1 + x) = 2 atanh(z) with
// z = x / (2 + x) in [0, 1/3], and atanh(z) / z = 1 + z^2 P(z^2): degree 3, error 5e-9.
template <class Isa>
inline Floats<Isa> log1p_to_one(Floats<Isa> x) {
    using F = Floats<Isa>;
    const F z = divide(x, F(2.0f) + x), twice = z + z, square = z * z;
    const F p = polynomial(square, 0.140121266f, 0.139995903f, 0.200108483f, 0.333332062f);
    return xsimd::fma(twice * square, p, twice);
}

// log(1 + exp(x)).  exp(-|x|) cannot overflow, and log1p keeps the relative precision of a small
// result.
template <class Isa>
inline Floats<Isa> softplus_of(Floats<Isa> x) {
    using F = Floats<Isa>;
    return xsimd::max(x, F(0.0f)) + log1p_to_one<Isa>(exp_to_one<Isa>(x | F(-0.0f)));
}

template <class Isa>
void softplus(const float* x, float* y, std::size_t n) {
    map<Isa>(n, y, [](auto v) { return softplus_of<Isa>(v); }, x);
}

// exp(x) of a log decay, which is at most 0 in any sane model.  exp_to_one serves up to 88.
template <class Isa>
inline Floats<Isa> decay_of(Floats<Isa> x) {
    return exp_to_one<Isa>(xsimd::min(x, Floats<Isa>(88.0f)));
}

template <class Isa>
void l2_norm(const float* x, float eps, float* y, std::size_t rows, std::size_t n) {
    using F = Floats<Isa>;
    for (std::size_t r = 0; r < rows; ++r, x += n, y += n) {
        double sum = long_sum<Isa>(x, n, [](F part, F v) { return xsimd::fma(v, v, part); });
        // The squares of very large and very small numbers leave float32's range.
        const bool fits = sum > 1e-30 && sum < 1e38;
        if (!fits) {
            sum = 0.0;
            for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
        }
        const double scale = 1.0 / std::sqrt(sum + static_cast<double>(eps));
        if (fits) {
            const F factor(static_cast<float>(scale));
            map<Isa>(n, y, [factor](F v) { return v * factor; }, x);
        } else {
            for (std::size_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] * scale);
        }
    }
}

// ---- the causal convolution --------------------------------------------------------------------

// Channels whose weights and inputs fit the L1 cache, for any number of taps.
inline constexpr std::size_t conv_block = 256;

// Channels [first, first + count) of all tokens, count <= conv_block.  The weights are transposed
// once, so that a vector holds one tap of several channels.  The window of the last inputs is a
// ring, because y may overwrite x.
template <class Isa, std::size_t Taps>
void convolve(const ConvTask& task, std::size_t first, std::size_t count) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>, kept = Taps - 1;
    alignas(64) float weight[Taps][conv_block], bias[conv_block], ring[Taps][conv_block];
    if (count % w != 0) {  // the last vector's other lanes
        std::memset(weight, 0, sizeof weight);
        std::memset(ring, 0, sizeof ring);
    }
    for (std::size_t c = 0; c < count; ++c)
        for (std::size_t j = 0; j < Taps; ++j) weight[j][c] = task.weight[(first + c) * Taps + j];
    if (task.bias)
        std::memcpy(bias, task.bias + first, count * sizeof(float));
    else
        std::memset(bias, 0, sizeof bias);
    float* past[Taps];  // the inputs of the last tokens, oldest first
    unroll<kept>([&](auto j) {
        past[j] = ring[j];
        std::memcpy(ring[j], task.state + j * task.channels + first, count * sizeof(float));
    });
    past[kept] = ring[kept];
    for (std::size_t t = 0; t < task.n_tokens; ++t) {
        const float* const x = task.x + t * task.stride + first;
        float* const y = task.y + t * task.stride + first;
        for (std::size_t i = 0; i < count; i += w) {
            const bool whole = i + w <= count;
            const F input = whole ? load<Isa>(x + i) : load_partial<Isa>(x + i, count - i, 0.0f);
            F sum = load<Isa>(bias + i);
            unroll<kept>([&](auto j) {
                sum = xsimd::fma(load<Isa>(weight[j] + i), load<Isa>(past[j] + i), sum);
            });
            sum = xsimd::fma(load<Isa>(weight[kept] + i), input, sum);
            input.store_aligned(past[kept] + i);
            if (task.silu) sum = times_sigmoid<Isa>(sum, sum);
            if (whole)
                sum.store_unaligned(y + i);
            else
                store_partial<Isa>(sum, y + i, count - i);
        }
        float* const oldest = past[0];
        unroll<kept>([&](auto j) { past[j] = past[j + 1]; });
        past[kept] = oldest;
    }
    unroll<kept>([&](auto j) {
        std::memcpy(task.state + j * task.channels + first, past[j], count * sizeof(float));
    });
}

template <class Isa>
void causal_conv(const ConvTask& task, std::size_t first, std::size_t last) {
    unroll<conv_max_taps>([&](auto i) {
        constexpr std::size_t taps = decltype(i)::value + 1;
        if (task.taps != taps) return;
        for (std::size_t c = first; c < last; c += conv_block)
            convolve<Isa, taps>(task, c, std::min(conv_block, last - c));
    });
}

// ---- the gated delta rule ----------------------------------------------------------------------

// Columns of the state that are handled at once, and tokens whose decays are computed at once for
// all columns of a call.
inline constexpr std::size_t delta_block = 32, delta_stretch = 8;
struct DeltaStretch {
    // [token][d_k]: exp(log decay), and that times k.
    alignas(64) float decay[delta_stretch * delta_rule_max_key_dim];
    alignas(64) float key[delta_stretch * delta_rule_max_key_dim];
};

template <class Isa>
void prepare(const DeltaRuleTask& task, std::size_t token, std::size_t count, DeltaStretch& s) {
    using F = Floats<Isa>;
    const std::size_t n = task.d_k;
    for (std::size_t t = 0; t < count; ++t) {
        const float* const g = task.log_decay + (token + t) * task.log_decay_stride;
        const float* const k = task.k + (token + t) * task.qk_stride;
        float* const decay = s.decay + t * n;
        if (task.decay_by_channel) {
            map<Isa>(n, decay, [](F v) { return decay_of<Isa>(v); }, g);
        } else {
            const F one = decay_of<Isa>(F(*g));
            map<Isa>(n, decay, [one](F) { return one; }, k);
        }
        map<Isa>(n, s.key + t * n, [](F d, F v) { return d * v; }, decay, k);
    }
}

// How a vector of columns lies in memory: all of its lanes, or the first `count`.
template <class Isa>
struct WholeVector {
    Floats<Isa> load(const float* p) const { return Floats<Isa>::load_unaligned(p); }
    void store(Floats<Isa> v, float* p) const { v.store_unaligned(p); }
};
template <class Isa>
struct PartialVector {
    std::size_t count;
    Floats<Isa> load(const float* p) const { return load_partial<Isa>(p, count, 0.0f); }
    void store(Floats<Isa> v, float* p) const { store_partial<Isa>(v, p, count); }
};

// N vectors of columns, for the `count` tokens of a stretch.  A pass over the columns of the state
// S updates them for a token, and sums both S^T q and what the next token recalls, S^T k.  (With
// the columns copied side by side, so that they fit the L1 cache, a prompt is not faster on a Zen
// 3: the L2 cache keeps up with the multiplications.)
template <class Isa, std::size_t N, class Vector>
void delta_columns(const DeltaRuleTask& task, const DeltaStretch& s, std::size_t token,
                   std::size_t count, std::size_t column, Vector vector) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    const std::size_t n = task.d_k, stride = task.d_v;
    float* const state = task.state + column;
    F recalled[N], delta[N], out[N];
    unroll<N>([&](auto j) { recalled[j] = F(0.0f); });
    for (std::size_t i = 0; i < n; ++i) {
        const F key(s.key[i]);
        unroll<N>([&](auto j) {
            recalled[j] = xsimd::fma(key, vector.load(state + i * stride + j * w), recalled[j]);
        });
    }
    for (std::size_t t = 0; t < count; ++t) {
        const float* const k = task.k + (token + t) * task.qk_stride;
        const float* const q = task.q + (token + t) * task.qk_stride;
        const float* const v = task.v + (token + t) * task.v_stride + column;
        const float* const decay = s.decay + t * n;
        const F beta(task.beta[(token + t) * task.beta_stride]);
        unroll<N>([&](auto j) {
            delta[j] = beta * (vector.load(v + j * w) - recalled[j]);
            out[j] = recalled[j] = F(0.0f);
        });
        const auto update = [&](auto last) {
            const float* const next = s.key + (last ? t : t + 1) * n;
            for (std::size_t i = 0; i < n; ++i) {
                const F fading(decay[i]), key(k[i]), query(q[i]);
                unroll<N>([&](auto j) {
                    float* const at = state + i * stride + j * w;
                    const F row = xsimd::fma(key, delta[j], fading * vector.load(at));
                    vector.store(row, at);
                    out[j] = xsimd::fma(query, row, out[j]);
                    if constexpr (!decltype(last)::value)
                        recalled[j] = xsimd::fma(F(next[i]), row, recalled[j]);
                });
            }
        };
        if (t + 1 < count)
            update(std::false_type{});
        else
            update(std::true_type{});
        float* const to = task.out + (token + t) * task.v_stride + column;
        unroll<N>([&](auto j) { vector.store(F(task.scale) * out[j], to + j * w); });
    }
}

template <class Isa>
void delta_rule(const DeltaRuleTask& task, std::size_t first, std::size_t last) {
    constexpr std::size_t w = lanes<Isa>;
    DeltaStretch s;
    for (std::size_t token = 0; token < task.n_tokens; token += delta_stretch) {
        const std::size_t count = std::min(delta_stretch, task.n_tokens - token);
        prepare<Isa>(task, token, count, s);
        std::size_t column = first;
        for (; column + delta_block <= last; column += delta_block)
            delta_columns<Isa, delta_block / w>(task, s, token, count, column, WholeVector<Isa>{});
        for (; column + w <= last; column += w)
            delta_columns<Isa, 1>(task, s, token, count, column, WholeVector<Isa>{});
        if (column < last)
            delta_columns<Isa, 1>(task, s, token, count, column, PartialVector<Isa>{last - column});
    }
}

// ---- the scan of Mamba-2 -----------------------------------------------------------------------

inline constexpr std::size_t scan_stretch = 64;  // tokens whose decays are computed at once

// Rows [row, row + Rows) of the state, for the tokens of a stretch.  The rows share each load of B
// and C.
template <class Isa, std::size_t Rows>
void scan_rows(const ScanTask& task, const float* decays, std::size_t token, std::size_t count,
               std::size_t row) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    static_assert(Rows <= w);
    const std::size_t n = task.d_state, whole = n / w * w;
    float* const state = task.state + row * n;
    for (std::size_t t = token; t < token + count; ++t) {
        const float* const x = task.x + t * task.x_stride + row;
        const float* const b = task.b + t * task.bc_stride;
        const float* const c = task.c + t * task.bc_stride;
        const F decay(decays[t - token]);
        F sums[w], inputs[Rows];
        unroll<w>([&](auto r) { sums[r] = F(0.0f); });
        unroll<Rows>([&](auto r) { inputs[r] = F(task.dt[t] * x[r]); });
        const auto columns = [&](std::size_t i, auto vector) {
            const F b_here = vector.load(b + i), c_here = vector.load(c + i);
            unroll<Rows>([&](auto r) {
                float* const at = state + r * n + i;
                const F h = xsimd::fma(inputs[r], b_here, decay * vector.load(at));
                vector.store(h, at);
                sums[r] = xsimd::fma(h, c_here, sums[r]);
            });
        };
        for (std::size_t i = 0; i < whole; i += w) columns(i, WholeVector<Isa>{});
        if (whole < n) columns(whole, PartialVector<Isa>{n - whole});
        const F skipped = load_partial<Isa>(x, Rows, 0.0f);
        const F y = xsimd::fma(F(task.skip), skipped, sum_each<Isa>(sums));
        store_partial<Isa>(y, task.y + t * task.x_stride + row, Rows);
    }
}

template <class Isa>
void ssm_scan(const ScanTask& task, std::size_t first, std::size_t last) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    alignas(64) float decays[scan_stretch];
    const F a(task.a);
    for (std::size_t token = 0; token < task.n_tokens; token += scan_stretch) {
        const std::size_t count = std::min(scan_stretch, task.n_tokens - token);
        map<Isa>(count, decays, [a](F dt) { return decay_of<Isa>(dt * a); }, task.dt + token);
        std::size_t row = first;
        for (; row + w <= last; row += w) scan_rows<Isa, w>(task, decays, token, count, row);
        for (; row < last; ++row) scan_rows<Isa, 1>(task, decays, token, count, row);
    }
}

// ---- the scan of Mamba -------------------------------------------------------------------------

// Channels [row, row + Rows).  They share each load of B and C; each element of the state has a
// decay of its own.
template <class Isa, std::size_t Rows>
void selective_rows(const SelectiveScanTask& task, std::size_t row) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    static_assert(Rows <= w);
    const std::size_t n = task.d_state, whole = n / w * w;
    float* const state = task.state + row * n;
    const float* const a = task.a + row * n;
    for (std::size_t t = 0; t < task.n_tokens; ++t) {
        const float* const x = task.x + t * task.stride + row;
        const float* const dt = task.dt + t * task.stride + row;
        const float* const b = task.b + t * n;
        const float* const c = task.c + t * n;
        F sums[w];
        unroll<w>([&](auto r) { sums[r] = F(0.0f); });
        const auto columns = [&](std::size_t i, auto vector) {
            const F b_here = vector.load(b + i), c_here = vector.load(c + i);
            unroll<Rows>([&](auto r) {
                float* const at = state + r * n + i;
                const F decay = decay_of<Isa>(F(dt[r]) * vector.load(a + r * n + i));
                const F h = xsimd::fma(F(dt[r] * x[r]), b_here, decay * vector.load(at));
                vector.store(h, at);
                sums[r] = xsimd::fma(h, c_here, sums[r]);
            });
        };
        for (std::size_t i = 0; i < whole; i += w) columns(i, WholeVector<Isa>{});
        if (whole < n) columns(whole, PartialVector<Isa>{n - whole});
        store_partial<Isa>(sum_each<Isa>(sums), task.y + t * task.stride + row, Rows);
    }
}

template <class Isa>
void selective_scan(const SelectiveScanTask& task, std::size_t first, std::size_t last) {
    constexpr std::size_t w = lanes<Isa>;
    std::size_t row = first;
    for (; row + w <= last; row += w) selective_rows<Isa, w>(task, row);
    for (; row < last; ++row) selective_rows<Isa, 1>(task, row);
}

}  // namespace
}  // namespace tensor_ops
