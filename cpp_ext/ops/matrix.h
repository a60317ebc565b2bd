// The two forms of matrices: packed for the kernels, or rows as a file stores them.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "kernels.h"
#include "ops/aligned_bytes.h"

namespace tensor_ops {

// Bytes of an n x k matrix as files store it.  Throws std::invalid_argument when k is no multiple
// of the type's block or the size overflows.
std::size_t matrix_bytes(DType type, std::size_t n, std::size_t k);

// n rows (outputs) by k columns (inputs), packed for the ISA that is in use at construction.
class PackedMatrix {
 public:
    // With memory of its own, and packed.  source: see `pack`.
    PackedMatrix(DType type, std::span<const std::byte> source, std::size_t n, std::size_t k);
    // Space for a matrix at byte `offset` of shared memory; `pack` or pack_groups fills it.
    // Throws std::invalid_argument if it does not fit, or if offset is no multiple of 64.
    PackedMatrix(DType type, std::size_t n, std::size_t k, std::shared_ptr<AlignedBytes> memory,
                 std::size_t offset);

    // Packs the whole matrix, matrix_bytes(type, n, k) bytes, on all threads.
    void pack(std::span<const std::byte> source) const;
    // Packs `rows`, the file's bytes of whole groups from `first_group` on, on the calling thread.
    void pack_groups(std::size_t first_group, std::span<const std::byte> rows) const;
    // Bytes of a group's rows in the file.
    std::size_t group_source_bytes() const;

    DType type() const { return view_.type; }
    std::size_t n() const { return view_.n; }
    std::size_t k() const { return view_.k; }
    std::size_t bytes() const { return bytes_; }
    std::size_t groups() const;
    const PackedView& view() const { return view_; }
    const KernelTable& table() const { return *table_; }

 private:
    const KernelTable* table_;
    std::shared_ptr<AlignedBytes> memory_;
    std::byte* data_;
    std::size_t bytes_;
    PackedView view_;
};

// Bytes of an n x k matrix when it is packed for the ISA in use.  Throws what matrix_bytes throws.
std::size_t packed_bytes(DType type, std::size_t n, std::size_t k);

// Rows as a file stores them, not owned: for lookups of single rows.
struct RawRows {
    const std::byte* data;
    DType type;
    std::size_t n, k;
};

}  // namespace tensor_ops
