// Uninitialised memory for vectors, aligned to cache lines of 64 bytes, or from 2 MB on to huge
// pages.  What is left behind the last whole huge page lies in small pages: a matrix of 2.4 MB
// would take 4 MB.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "threads/allocations.h"

namespace tensor_ops {

class AlignedBytes {
 public:
    AlignedBytes() = default;
    // Throws std::bad_alloc.
    explicit AlignedBytes(std::size_t bytes) : size_(bytes) {
        if (bytes) ++allocations;
        // Huge pages spare the kernels a TLB miss every 4 KB of weights.
        constexpr std::size_t huge_page = 2u << 20;
        const std::size_t alignment = bytes >= huge_page ? huge_page : 64;
        const std::size_t rounded = (bytes + 63) / 64 * 64;
        if (rounded < bytes) throw std::bad_alloc();
        void* data = nullptr;
        if (bytes && posix_memalign(&data, alignment, rounded)) throw std::bad_alloc();
        data_.reset(static_cast<std::byte*>(data));
#if defined(MADV_HUGEPAGE)
        if (alignment == huge_page) madvise(data, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
    }
    std::byte* data() const { return data_.get(); }
    std::size_t size() const { return size_; }

 private:
    struct Release {
        void operator()(std::byte* p) const { std::free(p); }
    };
    std::unique_ptr<std::byte, Release> data_;
    std::size_t size_ = 0;
};

}  // namespace tensor_ops
