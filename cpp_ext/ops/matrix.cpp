#include "ops/matrix.h"

#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "threads/team.h"

namespace tensor_ops {
namespace {

constexpr struct {
    DType type;
    const char* name;
} dtype_names[] = {{DType::f32, "f32"},   {DType::f16, "f16"},   {DType::bf16, "bf16"},
                   {DType::q8_0, "q8_0"}, {DType::q4_0, "q4_0"}, {DType::q4_1, "q4_1"}};

std::size_t checked_product(std::size_t a, std::size_t b) {
    std::size_t product;
    if (__builtin_mul_overflow(a, b, &product))
        throw std::invalid_argument("a matrix of " + std::to_string(a) + " rows of " +
                                    std::to_string(b) + " bytes does not fit into memory");
    return product;
}

}  // namespace

DType dtype_from_name(std::string_view name) {
    std::string known;
    for (const auto& entry : dtype_names) {
        if (name == entry.name) return entry.type;
        known += known.empty() ? entry.name : std::string(", ") + entry.name;
    }
    throw std::invalid_argument("unknown type '" + std::string(name) + "'; expected one of " +
                                known);
}

const char* dtype_name(DType type) { return dtype_names[static_cast<int>(type)].name; }

std::size_t matrix_bytes(DType type, std::size_t n, std::size_t k) {
    if (is_quantized(type) && k % quant_block != 0)
        throw std::invalid_argument("rows of " + std::to_string(k) + " elements cannot be " +
                                    dtype_name(type) + ", whose blocks are 32 elements long");
    if (k > SIZE_MAX / 8) checked_product(k, SIZE_MAX);
    return checked_product(n, row_bytes(type, k));
}

PackedMatrix::PackedMatrix(DType type, std::span<const std::byte> source, std::size_t n,
                           std::size_t k)
    : table_(&kernels()) {
    const std::size_t rows = table_->group_rows(type);
    const std::size_t groups = (n + rows - 1) / rows;
    data_ = AlignedBytes(checked_product(groups, table_->group_bytes(type, k)));
    view_ = {data_.data(), n, k, type};
    run_team(
        [&](const Worker& worker) {
            const Share part = share(worker, groups);
            table_->pack(type, source.data(), n, k, part.first, part.last, data_.data());
        },
        bytes() < 64 * 1024 ? 1 : 1024);
}

std::size_t PackedMatrix::groups() const {
    const std::size_t rows = table_->group_rows(view_.type);
    return (view_.n + rows - 1) / rows;
}

}  // namespace tensor_ops
