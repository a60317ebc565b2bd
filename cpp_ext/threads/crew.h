// The workers that have joined a run of the team: whether more may join, where they meet, and which
// work is left.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <utility>

#include "threads/team.h"

namespace tensor_ops {

class Crew {
 public:
    // What meet() throws in a run that has been abandoned.
    struct Abandoned {};

    // Opens a run for the caller, who has joined, and up to limit - 1 others.  No worker of an
    // earlier run may be left.
    void open(int limit, Joining joining);
    // Joins the run.  Returns the worker's index, or -1 if the run is closed or full.
    int join();
    // Closes the run, so that no more workers join; returns how many have joined.
    int close();
    // Waits for the others at a barrier; the calling worker has passed `passed` barriers before.
    // Throws Abandoned if one of them will not come.
    void meet(std::uint32_t passed);
    // Says that the calling worker has failed and will meet no one.  The first failure counts.
    void abandon(std::exception_ptr failure);
    // The failure of the run, once, when all workers have left; null if there is none.
    std::exception_ptr take_failure() { return std::exchange(failure_, nullptr); }
    // Claims [first, last), up to `largest` of the units that are left of deal number `step`, which
    // has `units` in all.  False if none is left.
    bool claim(std::uint32_t step, std::size_t units, std::size_t largest, std::size_t& first,
               std::size_t& last);

    int limit() const { return limit_; }

 private:
    // The state of the run, in one word so that it changes atomically: barriers passed; whether the
    // run is open; the most workers that may join (less one); workers that have joined; workers
    // that have arrived at the barrier.
    struct State {
        std::uint32_t barriers = 0;
        bool open = false;
        std::uint32_t limit = 0, joined = 0, arrived = 0;
        static State of(std::uint64_t word);
        std::uint64_t word() const;
    };

    std::atomic<std::uint64_t> state_{0};
    // A copy of that in state_, to wait for; or `abandoned`, which is above all of them.
    std::atomic<std::uint32_t> barriers_{0};
    std::atomic<bool> has_failed_{false};
    std::exception_ptr failure_;
    // The newest deal that any worker has begun, and how many of its units are claimed.  A worker
    // who asks for an older deal has missed it: no worker begins the next deal before all units of
    // one are claimed.
    alignas(64) std::atomic<std::uint64_t> dealt_{0};
    int limit_ = 1;
    Joining joining_ = Joining::any_time;
};

}  // namespace tensor_ops
