// The team of threads that runs every parallel operation.
//
// One primitive: run_team(f) calls f(worker) on the calling thread, worker 0, and on every other
// thread of the team that wakes in time, and returns when all who came are done.  Inside, Deals
// give out the work and worker.barrier() makes all who came wait for each other, so that a whole
// list of operations runs under one run.
//
// Nobody waits for a thread that has not come: work is dealt out in chunks to those who ask for
// it, so that a core that is slow to wake, or busy with something else, takes less of it instead of
// holding up the others.  (A second core that had slept takes 2.8 times as long as the first one
// for the first product it gets, and 1.3 times for the fifth.)  Waiting threads spin for a few
// microseconds, the length of a gap between operations, and then sleep in the kernel.
//
//   - If the team is busy with another thread's run (or a worker calls run_team), f runs on the
//     calling thread alone as a team of one: never wrong, never a deadlock.
//   - After fork() the child starts a team of its own on first use.
//   - Threads are started on first use, never joined, and hold nothing at exit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace tensor_ops {

class Crew;  // those who came to a run

// One thread's part in a run.
class Worker {
 public:
    // crew is null for a team of one.
    Worker(int index, int count, Crew* crew) : index_(index), count_(count), crew_(crew) {}
    int index() const { return index_; }
    // The most workers that there may be: indices are below it.
    int count() const { return count_; }
    // Returns when all who came to the run have called it as often.
    void barrier() const;

 private:
    friend class Deal;
    int index_, count_;
    Crew* crew_;
    // How many Deals this worker has begun and how many barriers it has passed: all workers go
    // through the same ones, so that these say where each is.
    mutable std::uint32_t deals_ = 0, barriers_ = 0;
};

// Gives [0, n) out to the workers of a run, in chunks of whole units that get smaller as less is
// left: first one of 1/(2 count) of all, at last single units.  All workers make the same Deals in
// the same order, and each asks for all of [0, n); what one gets is nobody else's.
class Deal {
 public:
    // largest: units in a chunk, for units so unequal that a large chunk would be unfair.
    Deal(const Worker& worker, std::size_t n, std::size_t unit = 1,
         std::size_t largest = ~std::size_t{0});

    // Calls f(first, last) for the chunks that this worker gets, as far as they lie in [from, to).
    // Ranges go up from call to call.
    template <class F>
    void within(std::size_t from, std::size_t to, F&& f) {
        while (first_ < to) {
            const std::size_t a = first_ < from ? from : first_, b = last_ < to ? last_ : to;
            if (a < b) f(a, b);
            if (last_ > to) return;
            take();
        }
    }

 private:
    // The next chunk; where nothing is left, an empty one beyond all ranges.
    void take();

    const Worker& worker_;
    std::size_t n_, unit_, largest_;
    std::uint32_t step_;
    std::size_t first_ = 0, last_ = 0;
};

// Calls f(first, last) for this worker's chunks of [0, n).
template <class F>
void deal(const Worker& worker, std::size_t n, std::size_t unit, F&& f) {
    Deal(worker, n, unit).within(0, n, f);
}

// At least `bytes` bytes of memory of this thread's own, 64-byte aligned, kept until it ends.
// Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);
// The same, apart from it, for memory that the thread which calls run_team lends to the team.
void* team_scratch(std::size_t bytes);

int num_threads();
// Throws std::invalid_argument unless 1 <= n <= 1024.
void set_num_threads(int n);

// Until when a thread that wakes late may come to a run.  It goes through the Deals and barriers
// that the others have behind them without waiting, and must meet the same ones: where their number
// depends on what an operation computed, it may come only before the first barrier.
enum class Joining { any_time, before_first_barrier };

using TeamFunction = void (*)(void* context, const Worker& worker);
// f must not throw.  max_threads bounds the team for this run, for work too small for all.
void run_team(TeamFunction f, void* context, int max_threads, Joining joining);

template <class F>
void run_team(F&& f, int max_threads = 1 << 20, Joining joining = Joining::any_time) {
    run_team(
        [](void* context, const Worker& worker) {
            (*static_cast<std::remove_reference_t<F>*>(context))(worker);
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(f))), max_threads, joining);
}

}  // namespace tensor_ops
