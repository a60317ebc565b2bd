// sigmoid, silu, gelu, elu, swiglu and add within the bounds of kernels.h.

#include <bit>

#include "arrays.h"
#include "reference.h"

using namespace arrays;
using tensor_ops::KernelTable;

namespace {

// No float32 is nearer to a result below the normal numbers than half of `tiny`.
double relative(double share, double exact) { return std::max(share * std::abs(exact), tiny); }

double gelu_tanh_bound(double x, double exact) {
    const double v = reference::gelu_argument(x);
    return v < -87 ? 1e-36 : relative(2e-7 * (2 + std::abs(v)), exact);
}

double gelu_erf_bound(double x, double exact) {
    if (x < -13.21) return 1e-38;
    return std::abs(exact) < 1e-36 ? 1e-42 : relative(1e-6, exact);
}

const struct Function {
    const char* name;
    void (*KernelTable::*kernel)(const float*, float*, std::size_t);
    double (*exact)(double);
    double (*bound)(double x, double exact);
} functions[] = {
    {"sigmoid", &KernelTable::sigmoid, reference::sigmoid,
     [](double x, double y) { return x < -87.33 ? 0x1p-126 : 3 * ulp(y); }},
    {"silu", &KernelTable::silu, reference::silu,
     [](double x, double y) { return x < -87.33 ? 0x1p-119 : 3 * ulp(y); }},
    {"gelu_tanh", &KernelTable::gelu_tanh, reference::gelu_tanh, gelu_tanh_bound},
    {"gelu_erf", &KernelTable::gelu_erf, reference::gelu_erf, gelu_erf_bound},
    {"elu", &KernelTable::elu, reference::elu,
     [](double, double y) { return relative(2 * 0x1p-23, y); }},
};

void check_results(const Function& f, const Floats& x, const Floats& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double exact = f.exact(x[i]);
        check::near(f.name, y[i], exact, f.bound(x[i], exact), "of ", x[i]);
    }
}

// All float32 numbers in steps of their bit patterns: infinities and NaN, denormals of both signs.
Floats every_kind_of_float() {
    constexpr std::uint64_t step = 20011, all = std::uint64_t{1} << 32;
    Floats x(all / step);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = std::bit_cast<float>(static_cast<std::uint32_t>(i * step));
    return x;
}

// Zeros, the ends of the denormals, of exp's range and of float32, infinities and NaN.
Floats edges() {
    const std::vector<double> values = {0,   tiny, smallest_normal, 1e-20,   88, 104,
                                        1e4, 3e38, 3.4028234e38,    infinity};
    Floats x(2 * values.size() + 1);
    for (std::size_t i = 0; i < values.size(); ++i) {
        x[2 * i] = static_cast<float>(values[i]);
        x[2 * i + 1] = -x[2 * i];
    }
    x[2 * values.size()] = not_a_number;
    return x;
}

}  // namespace

KERNEL_TEST(every_kind_of_float_is_within_the_bound) {
    const Floats x = every_kind_of_float();
    for (const Function& f : functions) {
        Floats y(x.size());
        (table.*f.kernel)(x.data(), y.data(), x.size());
        check_results(f, x, y);
    }
}

KERNEL_TEST(the_range_in_which_the_functions_bend_is_within_the_bound) {
    Floats x(20001);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = static_cast<float>(0.011 * (static_cast<double>(i) - 10000));
    for (const Function& f : functions) {
        Floats y(x.size());
        (table.*f.kernel)(x.data(), y.data(), x.size());
        check_results(f, x, y);
    }
}

KERNEL_TEST(infinities_nan_denormals_and_huge_values_give_the_limit) {
    const Floats x = edges();
    for (const Function& f : functions) {
        Floats y(x.size());
        (table.*f.kernel)(x.data(), y.data(), x.size());
        check_results(f, x, y);
    }
}

KERNEL_TEST(every_size_at_any_start_writes_its_elements_and_no_other) {
    for (const Function& f : functions) {
        for (const std::size_t n : sizes()) {
            const Floats x = normal(n, static_cast<unsigned>(n), 4, n % 16);
            Floats y(n, (n + 5) % 16);
            (table.*f.kernel)(x.data(), y.data(), n);
            check_results(f, x, y);
        }
    }
}

KERNEL_TEST(in_place_gives_the_same) {
    for (const Function& f : functions) {
        for (const std::size_t n : sizes()) {
            const Floats x = normal(n, static_cast<unsigned>(n), 4, 3);
            Floats y(n), in_place = copy<float>(x, 3);
            (table.*f.kernel)(x.data(), y.data(), n);
            (table.*f.kernel)(in_place.data(), in_place.data(), n);
            check::that(same_bytes(y, in_place), f.name);
        }
    }
}

KERNEL_TEST(a_nan_touches_no_other_element) {
    for (const Function& f : functions) {
        for (const std::size_t n : {1u, 15u, 33u, 70u}) {
            for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
                Floats x = normal(n, 1), y(n);
                x[at] = not_a_number;
                (table.*f.kernel)(x.data(), y.data(), n);
                check_results(f, x, y);
            }
        }
    }
}

// ---- two inputs --------------------------------------------------------------------------------

namespace {

void check_swiglu(const Floats& gate, const Floats& up, const Floats& y) {
    for (std::size_t i = 0; i < y.size(); ++i) {
        // silu(gate) is rounded to float32, where it may be a denormal or 0, before it is
        // multiplied.
        const double exact = reference::swiglu(gate[i], up[i]);
        const double silu_rounding = gate[i] < -87.33 ? 0x1p-119 : 3 * tiny;
        if (std::isinf(up[i]) && std::abs(reference::silu(gate[i])) <= silu_rounding) continue;
        const double rounding = std::isinf(up[i]) ? 0 : silu_rounding * std::abs(up[i]);
        check::near("swiglu", y[i], exact, std::max(4 * ulp(exact), rounding), "of ", gate[i],
                    " and ", up[i]);
    }
}

}  // namespace

KERNEL_TEST(swiglu_of_every_size_at_any_start) {
    for (const std::size_t n : sizes()) {
        const Floats gate = normal(n, 1, 4, n % 16), up = normal(n, 2, 1, (n + 7) % 16);
        Floats y(n, (n + 3) % 16);
        table.swiglu(gate.data(), up.data(), y.data(), n);
        check_swiglu(gate, up, y);
    }
}

KERNEL_TEST(swiglu_of_every_kind_of_gate) {
    const Floats gate = every_kind_of_float(), up = normal(gate.size(), 1);
    Floats y(gate.size());
    table.swiglu(gate.data(), up.data(), y.data(), y.size());
    check_swiglu(gate, up, y);
}

KERNEL_TEST(swiglu_of_every_pair_of_edges) {
    const Floats values = edges();
    Floats gate(values.size()), y(values.size());
    for (const float gate_value : values) {
        for (float& v : gate) v = gate_value;
        table.swiglu(gate.data(), values.data(), y.data(), y.size());
        check_swiglu(gate, values, y);
    }
}

KERNEL_TEST(swiglu_into_its_gate_or_its_up) {
    for (const std::size_t n : {1u, 17u, 70u}) {
        Floats gate = normal(n, 1), up = normal(n, 2), y(n);
        table.swiglu(gate.data(), up.data(), y.data(), n);
        Floats into_gate = copy<float>(gate), into_up = copy<float>(up);
        table.swiglu(into_gate.data(), up.data(), into_gate.data(), n);
        table.swiglu(gate.data(), into_up.data(), into_up.data(), n);
        check::that(same_bytes(y, into_gate), "into gate");
        check::that(same_bytes(y, into_up), "into up");
    }
}

KERNEL_TEST(add_is_correctly_rounded) {
    for (const std::size_t n : sizes()) {
        const Floats a = normal(n, 1, 1, n % 16), b = normal(n, 2, 1e-4, (n + 7) % 16);
        Floats y(n, (n + 3) % 16);
        table.add(a.data(), b.data(), y.data(), n);
        for (std::size_t i = 0; i < n; ++i) check::equal(y[i], a[i] + b[i], "add");
    }
    const Floats values = edges();
    Floats a(values.size()), y(values.size());
    for (const float value : values) {
        for (float& v : a) v = value;
        table.add(a.data(), values.data(), y.data(), y.size());
        for (std::size_t i = 0; i < y.size(); ++i)
            check::near("add", y[i], value + values[i], 0, "of ", value, " and ", values[i]);
    }
}

KERNEL_TEST(add_into_one_of_its_inputs) {
    for (const std::size_t n : {1u, 17u, 70u}) {
        const Floats a = normal(n, 1), b = normal(n, 2);
        Floats y(n), into_a = copy<float>(a), into_b = copy<float>(b);
        table.add(a.data(), b.data(), y.data(), n);
        table.add(into_a.data(), b.data(), into_a.data(), n);
        table.add(a.data(), into_b.data(), into_b.data(), n);
        check::that(same_bytes(y, into_a), "into a");
        check::that(same_bytes(y, into_b), "into b");
    }
}
