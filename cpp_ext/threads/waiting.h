// A thread that waits for another spins for a moment, then sleeps.
#pragma once

#include <atomic>

namespace tensor_ops {

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// About 20 to 50 microseconds: longer than the gap between two operations of a layer, too short to
// matter to a battery.
inline constexpr int spins = 1000;

// Returns once value != old.
template <class T>
void wait_while_equal(const std::atomic<T>& value, T old) {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause_cpu();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace tensor_ops
