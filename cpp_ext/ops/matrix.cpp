#include "ops/matrix.h"

#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "ops/ops.h"
#include "threads/team.h"

namespace tensor_ops {
namespace {

std::size_t checked_product(std::size_t a, std::size_t b) {
    std::size_t product;
    if (__builtin_mul_overflow(a, b, &product))
        throw std::invalid_argument("a matrix of " + std::to_string(a) + " rows of " +
                                    std::to_string(b) + " bytes does not fit into memory");
    return product;
}

}  // namespace

std::size_t matrix_bytes(DType type, std::size_t n, std::size_t k) {
    const std::size_t block = block_size(type).elements;
    if (k % block != 0)
        throw std::invalid_argument("rows of " + std::to_string(k) + " elements cannot be " +
                                    dtype_name(type) + ", whose blocks are " +
                                    std::to_string(block) + " elements long");
    if (k > SIZE_MAX / 8) checked_product(k, SIZE_MAX);
    return checked_product(n, row_bytes(type, k));
}

std::size_t packed_bytes(DType type, std::size_t n, std::size_t k) {
    matrix_bytes(type, n, k);
    const KernelTable& table = kernels();
    const std::size_t rows = table.group_rows(type);
    return checked_product((n + rows - 1) / rows, table.group_bytes(type, k));
}

PackedMatrix::PackedMatrix(DType type, std::size_t n, std::size_t k,
                           std::shared_ptr<AlignedBytes> memory, std::size_t offset)
    : table_(&kernels()), memory_(std::move(memory)), bytes_(packed_bytes(type, n, k)) {
    if (offset % 64 || offset > memory_->size() || bytes_ > memory_->size() - offset)
        throw std::invalid_argument("a packed matrix of " + std::to_string(bytes_) +
                                    " bytes does not fit at " + std::to_string(offset) + " of " +
                                    std::to_string(memory_->size()) +
                                    " bytes, or not at a multiple of 64");
    data_ = memory_->data() + offset;
    view_ = {data_, n, k, type};
}

PackedMatrix::PackedMatrix(DType type, std::span<const std::byte> source, std::size_t n,
                           std::size_t k)
    : PackedMatrix(type, n, k, std::make_shared<AlignedBytes>(packed_bytes(type, n, k)), 0) {
    pack(source);
}

void PackedMatrix::pack(std::span<const std::byte> source) const {
    const std::size_t n = view_.n, k = view_.k;
    if (k == 0) return;  // nothing to pack, in up to 2^31 rows
    const std::size_t all = groups();
    run_team(
        [&](const Worker& worker) {
            deal(worker, all, dealt_groups, [&](std::size_t first, std::size_t last) {
                table_->pack(view_.type, source.data(), n, k, first, last, data_);
            });
        },
        bytes() < 64 * 1024 ? 1 : 1024);
}

void PackedMatrix::pack_groups(std::size_t first_group, std::span<const std::byte> rows) const {
    const std::size_t group_rows = table_->group_rows(view_.type);
    const std::size_t n_rows = rows.size() / row_bytes(view_.type, view_.k);
    table_->pack(view_.type, rows.data(), n_rows, view_.k, 0,
                 (n_rows + group_rows - 1) / group_rows,
                 data_ + first_group * table_->group_bytes(view_.type, view_.k));
}

std::size_t PackedMatrix::group_source_bytes() const {
    return table_->group_rows(view_.type) * row_bytes(view_.type, view_.k);
}

std::size_t PackedMatrix::groups() const {
    const std::size_t rows = table_->group_rows(view_.type);
    return (view_.n + rows - 1) / rows;
}

}  // namespace tensor_ops
