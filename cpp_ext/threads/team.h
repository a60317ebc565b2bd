// The team of threads that runs every parallel operation.
//
// run_team(f) is the only primitive.  It calls f(worker) on the calling thread, which is worker 0,
// and on every other thread of the team that wakes in time, and returns when all of them are done.
// Inside a run, Deals hand out the work, and worker.barrier() makes the workers wait for each
// other, so that one run does a whole list of operations.
//
// No worker waits for a thread that has not joined.  Workers ask for work and get it in chunks: a
// core that is slow to wake, or busy with something else, takes less of it instead of holding up
// the others.  (A second core that had slept takes 2.8 times as long as the first core for its
// first product, and 1.3 times for its fifth.)  A waiting thread spins for 20 to 50 microseconds,
// longer than the gap between two operations, and then sleeps in the kernel.
//
//   - If the team is busy with another thread's run (or a worker calls run_team), f runs on the
//     calling thread alone, as a team of one.  This is correct and cannot deadlock.
//   - After fork() the child starts a team of its own on first use.
//   - Threads are started on first use, never joined, and do not delay the exit of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace tensor_ops {

class Crew;  // the workers that have joined a run

// One thread's part in a run.
class Worker {
 public:
    // crew is null for a team of one.
    Worker(int index, int count, Crew* crew) : index_(index), count_(count), crew_(crew) {}
    int index() const { return index_; }
    // The most workers that may join the run; every index is below it.
    int count() const { return count_; }
    // Returns when all workers that have joined the run have called it as many times.  Throws, and
    // the worker must leave, if the run has failed in another worker.
    void barrier() const;
    // How many times this worker has called barrier().
    std::uint32_t barriers() const { return barriers_; }

 private:
    friend class Deal;
    int index_, count_;
    Crew* crew_;
    // How many Deals this worker has begun, and how many barriers it has passed.  All workers go
    // through the same ones, so these counts say how far a worker is.
    mutable std::uint32_t deals_ = 0, barriers_ = 0;
};

// Hands out [0, n) to the workers of a run, in chunks of whole units.  Chunks get smaller as less
// is left: the first is 1/(2 count) of everything, the last ones are single units.  All workers
// must make the same Deals in the same order, and each must ask for all of [0, n).  No two workers
// get the same element.
class Deal {
 public:
    // largest: the most units in a chunk, for units so unequal that a large chunk would be unfair.
    Deal(const Worker& worker, std::size_t n, std::size_t unit = 1,
         std::size_t largest = ~std::size_t{0});

    // Calls f(first, last) for this worker's chunks, as far as they lie in [from, to).  The ranges
    // of successive calls must ascend.
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
    // Takes the next chunk or, if none is left, an empty one beyond all ranges.
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

// At least `bytes` bytes of this thread's own memory, 64-byte aligned.  They last until the thread
// asks for more or ends.  Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);
// The same with memory of its own, which the thread that calls run_team lends to the team.
void* team_scratch(std::size_t bytes);

int num_threads();
// Throws std::invalid_argument unless 1 <= n <= 1024.
void set_num_threads(int n);

// When a thread that wakes late may join a run.  It goes through the Deals and barriers that the
// others have completed without waiting, and must find the same ones.  If their number depends on
// the result of an operation, threads may join only before the first barrier.
enum class Joining { any_time, before_first_barrier };

using TeamFunction = void (*)(void* context, const Worker& worker);
// What f throws in any worker ends the run: the others leave at their next barrier, and the first
// exception goes on to the caller when all of them have left.  max_threads limits the team for this
// run, for work too small for all threads.
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
