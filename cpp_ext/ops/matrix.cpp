#include "ops/matrix.h"

#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "threads/team.h"

namespace tensor_ops {
namespace {

constexpr const char* dtype_names[] = {"f32",  "f16",  "bf16", "q8_0", "q4_0", "q4_1", "q5_0",
                                       "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"};

std::size_t checked_product(std::size_t a, std::size_t b) {
    std::size_t product;
    if (__builtin_mul_overflow(a, b, &product))
        throw std::invalid_argument("a matrix of " + std::to_string(a) + " rows of " +
                                    std::to_string(b) + " bytes does not fit into memory");
    return product;
}

}  // namespace

std::span<const char* const> dtype_name_list() { return dtype_names; }

const char* dtype_name(DType type) { return dtype_names[static_cast<int>(type)]; }

std::size_t matrix_bytes(DType type, std::size_t n, std::size_t k) {
    const std::size_t block = block_size(type).elements;
    if (k % block != 0)
        throw std::invalid_argument("rows of " + std::to_string(k) + " elements cannot be " +
                                    dtype_name(type) + ", whose blocks are " +
                                    std::to_string(block) + " elements long");
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
            deal(worker, groups, 4, [&](std::size_t first, std::size_t last) {
                table_->pack(type, source.data(), n, k, first, last, data_.data());
            });
        },
        bytes() < 64 * 1024 ? 1 : 1024);
}

std::size_t PackedMatrix::groups() const {
    const std::size_t rows = table_->group_rows(view_.type);
    return (view_.n + rows - 1) / rows;
}

}  // namespace tensor_ops
