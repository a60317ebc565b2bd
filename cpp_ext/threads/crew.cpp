#include "threads/crew.h"

#include <algorithm>
#include <utility>

#include "threads/waiting.h"

namespace tensor_ops {
namespace {

constexpr int unit_bits = 40;  // of Crew::dealt_: a run has up to 2^24 deals of up to 2^40 units
constexpr std::uint64_t unit_mask = (std::uint64_t{1} << unit_bits) - 1;
constexpr std::uint32_t abandoned = ~std::uint32_t{0};  // of Crew::barriers_

}  // namespace

Crew::State Crew::State::of(std::uint64_t word) {
    const auto bits = [&](int first, int count) {
        return static_cast<std::uint32_t>(word >> first & ((std::uint64_t{1} << count) - 1));
    };
    return {bits(32, 32), bits(31, 1) != 0, bits(21, 10), bits(10, 11), bits(0, 10)};
}

std::uint64_t Crew::State::word() const {
    return std::uint64_t{barriers} << 32 | std::uint64_t{open} << 31 | std::uint64_t{limit} << 21 |
           std::uint64_t{joined} << 10 | arrived;
}

void Crew::open(int limit, Joining joining) {
    limit_ = limit;
    joining_ = joining;
    barriers_.store(0, std::memory_order_relaxed);
    has_failed_.store(false, std::memory_order_relaxed);
    dealt_.store(0, std::memory_order_relaxed);
    const State state{0, true, static_cast<std::uint32_t>(limit - 1), 1, 0};
    state_.store(state.word(), std::memory_order_release);
}

int Crew::join() {
    std::uint64_t seen = state_.load(std::memory_order_acquire);
    for (;;) {
        State state = State::of(seen);
        if (!state.open || state.joined > state.limit) return -1;
        const auto index = static_cast<int>(state.joined++);
        if (state_.compare_exchange_weak(seen, state.word(), std::memory_order_acq_rel))
            return index;
    }
}

int Crew::close() {
    constexpr std::uint64_t open_bit = std::uint64_t{1} << 31;
    const std::uint64_t seen = state_.fetch_and(~open_bit, std::memory_order_acq_rel);
    return static_cast<int>(State::of(seen).joined);
}

void Crew::meet(std::uint32_t passed) {
    std::uint64_t seen = state_.load(std::memory_order_acquire);
    if (joining_ == Joining::before_first_barrier && passed == 0) {
        // The other threads are waking or asleep.  They cannot join later, so waiting a moment for
        // them pays.
        for (int i = 0; i < spins && State::of(seen).joined <= State::of(seen).limit; ++i) {
            pause_cpu();
            seen = state_.load(std::memory_order_acquire);
        }
    }
    for (;;) {
        State state = State::of(seen);
        if (state.barriers != passed) return;  // this worker joined after the others had met here
        const bool last = state.arrived + 1 == state.joined;
        if (last) {
            ++state.barriers;
            state.arrived = 0;
            if (joining_ == Joining::before_first_barrier) state.open = false;
        } else {
            ++state.arrived;
        }
        if (!state_.compare_exchange_weak(seen, state.word(), std::memory_order_acq_rel)) continue;
        if (last) {
            // Unless a worker that joined late has passed this barrier and abandoned the run.
            std::uint32_t before = passed;
            if (!barriers_.compare_exchange_strong(before, passed + 1, std::memory_order_acq_rel))
                throw Abandoned{};
            barriers_.notify_all();
        } else {
            // A worker that joined late may be here before the last worker of the previous barrier
            // has stored barriers_.
            auto met = barriers_.load(std::memory_order_acquire);
            for (; met <= passed; met = barriers_.load(std::memory_order_acquire))
                wait_while_equal(barriers_, met);
            if (met == abandoned) throw Abandoned{};
        }
        return;
    }
}

void Crew::abandon(std::exception_ptr failure) {
    if (has_failed_.exchange(true, std::memory_order_acq_rel)) return;
    failure_ = std::move(failure);
    barriers_.store(abandoned, std::memory_order_release);
    barriers_.notify_all();
}

bool Crew::claim(std::uint32_t step, std::size_t units, std::size_t largest, std::size_t& first,
                 std::size_t& last) {
    std::uint64_t seen = dealt_.load(std::memory_order_acquire);
    for (;;) {
        const std::uint64_t newest = seen >> unit_bits;
        if (newest > step) return false;
        first = newest == step ? static_cast<std::size_t>(seen & unit_mask) : 0;
        if (first >= units) return false;
        const std::size_t part = (units - first) / (2 * static_cast<std::size_t>(limit_));
        last = first + std::clamp<std::size_t>(part, 1, largest);
        const std::uint64_t wanted = std::uint64_t{step} << unit_bits | last;
        if (dealt_.compare_exchange_weak(seen, wanted, std::memory_order_acq_rel)) return true;
    }
}

}  // namespace tensor_ops
