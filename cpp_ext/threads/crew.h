// Those who came to a run of the team: who may still come, where they meet, what is left to do.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "threads/team.h"

namespace tensor_ops {

class Crew {
 public:
    // A new run, of the caller and up to limit - 1 others.  Nobody else is in.
    void open(int limit, Joining joining);
    // The index of a worker who comes, or -1: nothing to do, or enough are there.
    int join();
    // No one comes any more; returns how many came.
    int close();
    // The calling worker has passed `passed` barriers before.
    void meet(std::uint32_t passed);
    // Takes up to `largest` units off what is left of the deal number `step`, of `units` in all.
    // False when nothing is left.
    bool claim(std::uint32_t step, std::size_t units, std::size_t largest, std::size_t& first,
               std::size_t& last);

    int limit() const { return limit_; }

 private:
    // Who is there, in one word so that it changes at once: barriers passed, is the run open, most
    // that may join (less one), joined, arrived at the barrier.
    struct State {
        std::uint32_t barriers = 0;
        bool open = false;
        std::uint32_t limit = 0, joined = 0, arrived = 0;
        static State of(std::uint64_t word);
        std::uint64_t word() const;
    };

    std::atomic<std::uint64_t> state_{0};
    std::atomic<std::uint32_t> barriers_{0};  // as in state_, to wait for
    // The newest deal that anyone has begun and how many of its units are given out.  Who asks for
    // an older one has missed it: nobody begins the next before all of one is given out.
    alignas(64) std::atomic<std::uint64_t> dealt_{0};
    int limit_ = 1;
    Joining joining_ = Joining::any_time;
};

}  // namespace tensor_ops
