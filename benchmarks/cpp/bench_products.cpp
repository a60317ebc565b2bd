// Matrix products: float32, and packed weights of each type against one row and against many.
#include <cstring>
#include <memory>
#include <random>
#include <span>

#include "bench.h"
#include "ops/ops.h"

namespace bench {
namespace {

using tensor_ops::Activations;
using tensor_ops::AlignedBytes;
using tensor_ops::DType;
using tensor_ops::KernelTable;
using tensor_ops::PackedMatrix;
using tensor_ops::Worker;

constexpr std::size_t hidden = 4096;

// One row is read at memory's speed, several are a matter of arithmetic.
Work work_of(std::size_t rows, std::size_t n, std::size_t k, std::size_t weight_bytes, Limit peak) {
    const double operations = 2.0 * static_cast<double>(rows * n * k);
    if (rows == 1) return {Limit::read, static_cast<double>(weight_bytes), operations};
    return {peak, operations, operations};
}

void add_matmul(std::size_t rows, std::size_t k, std::size_t n) {
    struct Data {
        std::vector<float> a, b, c, sums;
    };
    const std::size_t copies = rows == 1 ? cycles(4 * k * n) : 1;
    const Work work = work_of(rows, n, k, 4 * k * n, Limit::multiply_add);
    add("matmul_f32" + dimensions({rows, k, n}), work, [=](const KernelTable& table) {
        auto data = std::make_shared<Data>(Data{normal(rows * k), normal(k * n), {}, {}});
        data->c.resize(rows * n);
        data->sums.resize(tensor_ops::matmul_sums(rows) * n);
        data->b.reserve(copies * k * n);
        for (std::size_t i = 1; i < copies; ++i)
            data->b.insert(data->b.end(), data->b.begin(),
                           data->b.begin() + static_cast<std::ptrdiff_t>(k * n));
        return [=, &table](const Worker& worker, std::size_t iteration) {
            const float* b = data->b.data() + iteration % copies * k * n;
            tensor_ops::matmul(worker, table, data->a.data(), b, data->c.data(), rows, k, n,
                               data->sums.data());
        };
    });
}

// Rows as files store them: random bits, but each half is an ordinary number of about 2^-9, so that
// wherever a block has its scales, they are neither denormal, nor infinite, nor NaN.
std::vector<std::byte> random_rows(DType type, std::size_t n, std::size_t k) {
    std::vector<std::byte> data(n * tensor_ops::row_bytes(type, k));
    std::mt19937 generator(1);
    for (std::size_t i = 0; i + 4 <= data.size(); i += 4) {
        const std::uint32_t bits =
            (static_cast<std::uint32_t>(generator()) & 0x9bff9bff) | 0x18001800;
        std::memcpy(data.data() + i, &bits, 4);
    }
    if (type == DType::mxfp4)  // 2^-8
        for (std::size_t i = 0; i < data.size(); i += tensor_ops::block_size(type).bytes)
            data[i] = std::byte{120};
    return data;
}

void add_packed(const char* name, DType type, std::size_t rows, std::size_t k, std::size_t n) {
    struct Data {
        std::vector<PackedMatrix> matrices;
        std::vector<float> x, y;
        AlignedBytes quantized;
    };
    const std::size_t bytes = n * tensor_ops::row_bytes(type, k);
    const std::size_t copies = rows == 1 ? cycles(bytes) : 1;
    const bool quantised = tensor_ops::is_quantized(type);
    const Limit peak = quantised ? Limit::dot : Limit::multiply_add;
    const Activations kind = tensor_ops::activations_for(rows);
    add(std::string("linear_") + name + dimensions({rows, k, n}), work_of(rows, n, k, bytes, peak),
        [=](const KernelTable& table) {
            auto data = std::make_shared<Data>();
            const std::vector<std::byte> source = random_rows(type, n, k);
            for (std::size_t i = 0; i < copies; ++i)
                data->matrices.emplace_back(type, std::span(source), n, k);
            data->x = normal(rows * k);
            data->y.resize(rows * n);
            data->quantized = AlignedBytes(tensor_ops::quantized_activation_bytes(kind, rows, k));
            return [=, &table](const Worker& worker, std::size_t iteration) {
                const float* x = data->x.data();
                if (quantised) {
                    tensor_ops::quantize_activations(worker, table, kind, x, rows, k,
                                                     data->quantized.data());
                    worker.barrier();
                }
                tensor_ops::linear(worker, data->matrices[iteration % copies], x, kind,
                                   data->quantized.data(), rows, data->y.data());
            };
        });
}

}  // namespace

void add_products() {
    for (const std::size_t rows : {1u, 8u, 128u, 512u}) add_matmul(rows, hidden, hidden);
    for (const auto& format : tensor_ops::formats)
        if (format.type != DType::f32) add_packed(format.name, format.type, 1, hidden, hidden);
    for (const std::size_t rows : {8u, 256u, 512u})
        for (const DType type : {DType::q4_0, DType::q8_0, DType::q4_k, DType::iq4_xs, DType::mxfp4,
                                 DType::iq3_xxs, DType::iq2_xxs, DType::iq1_s})
            add_packed(tensor_ops::dtype_name(type), type, rows, hidden, hidden);
}

}  // namespace bench
