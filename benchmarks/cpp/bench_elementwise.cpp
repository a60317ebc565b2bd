// Row-wise and elementwise kernels, at sizes that the caches hold and at one that they do not.
#include <memory>

#include "bench.h"
#include "ops/ops.h"

namespace bench {
namespace {

using tensor_ops::KernelTable;
using tensor_ops::Worker;

constexpr std::size_t hidden = 4096, ffn = 11008, cached_bytes = 8u << 20;
constexpr std::size_t n_heads = 32, head_dim = 128;

struct Arrays {
    explicit Arrays(std::size_t n) : a(normal(n)), b(normal(n)), y(n) {}
    std::vector<float> a, b, y;
};

using Body = void (*)(const Worker&, const KernelTable&, Arrays&, std::size_t rows, std::size_t n);

// arrays: how many are read or written.  operations: for each element, roughly.
void add_rows(const char* name, Body body, std::size_t rows, std::size_t n, int arrays,
              double operations) {
    const double elements = static_cast<double>(rows * n), bytes = 4.0 * arrays * elements;
    const Limit limit = bytes > cached_bytes ? Limit::copy : Limit::none;
    add(name + dimensions({rows, n}), {limit, bytes, operations * elements},
        [=](const KernelTable& table) {
            return
                [=, &table, arrays = std::make_shared<Arrays>(rows * n)](
                    const Worker& worker, std::size_t) { body(worker, table, *arrays, rows, n); };
        });
}

template <auto kernel>
void elementwise(const Worker& worker, const KernelTable& table, Arrays& x, std::size_t rows,
                 std::size_t n) {
    tensor_ops::for_elements(worker, rows * n, [&](std::size_t first, std::size_t count) {
        (table.*kernel)(x.a.data() + first, x.y.data() + first, count);
    });
}

void swiglu(const Worker& worker, const KernelTable& table, Arrays& x, std::size_t rows,
            std::size_t n) {
    tensor_ops::for_elements(worker, rows * n, [&](std::size_t first, std::size_t count) {
        table.swiglu(x.a.data() + first, x.b.data() + first, x.y.data() + first, count);
    });
}

void rms_norm(const Worker& worker, const KernelTable& table, Arrays& x, std::size_t rows,
              std::size_t n) {
    tensor_ops::rms_norm(worker, table, x.a.data(), x.b.data(), 1e-5f, x.y.data(), rows, n);
}

void softmax(const Worker& worker, const KernelTable& table, Arrays& x, std::size_t rows,
             std::size_t n) {
    tensor_ops::softmax(worker, table, x.a.data(), x.y.data(), rows, n);
}

void rope(const Worker& worker, const KernelTable& table, Arrays& x, std::size_t rows,
          std::size_t) {
    tensor_ops::rope(worker, table, x.a.data(), x.b.data(), x.y.data(), rows, n_heads, head_dim,
                     head_dim, false);
}

}  // namespace

void add_elementwise() {
    struct Entry {
        const char* name;
        Body body;
        int arrays;
        double operations;
    };
    const Entry entries[] = {
        {"rms_norm", rms_norm, 2, 4},
        {"silu", elementwise<&KernelTable::silu>, 2, 4},
        {"gelu_tanh", elementwise<&KernelTable::gelu_tanh>, 2, 8},
        {"gelu_erf", elementwise<&KernelTable::gelu_erf>, 2, 8},
        {"softmax", softmax, 2, 5},
        {"swiglu", swiglu, 3, 5},
        {"rope", rope, 2, 3},
    };
    for (const Entry& e : entries)
        for (const std::size_t rows : {1u, 128u, 2048u})
            add_rows(e.name, e.body, rows, hidden, e.arrays, e.operations);
    add_rows("swiglu", swiglu, 1, ffn, 3, 5);
}

}  // namespace bench
