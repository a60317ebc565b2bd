// Counts the allocations of memory for work, so that tests can check that a loop makes none.
#pragma once

#include <atomic>
#include <cstdint>

namespace tensor_ops {

inline std::atomic<std::uint64_t> allocations{0};

}  // namespace tensor_ops
