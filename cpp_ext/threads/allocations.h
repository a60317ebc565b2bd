// How often memory was taken for work: what the tests look at to see that a loop takes none.
#pragma once

#include <atomic>
#include <cstdint>

namespace tensor_ops {

inline std::atomic<std::uint64_t> allocations{0};

}  // namespace tensor_ops
