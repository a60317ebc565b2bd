// The team of threads that runs every parallel operation.
//
// One primitive: run(f) calls f(worker) on each thread of the team, the caller being worker 0, and
// returns when all are done; inside, worker.barrier() makes them wait for each other, so that a
// whole list of operations runs under one run().  Waiting threads spin for a few microseconds, the
// length of a gap between operations, and then sleep in the kernel.
//
//   - If the team is busy with another thread's run (or a worker calls run), f runs on the calling
//     thread alone as a team of one: never wrong, never a deadlock.
//   - After fork() the child starts a team of its own on first use.
//   - Threads are started on first use, never joined, and hold nothing at exit.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <type_traits>

namespace tensor_ops {

// All threads of a team meet at wait().
class Barrier {
 public:
    void reset(int count) { count_ = count; }
    void wait();

 private:
    int count_ = 1;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> generation_{0};
};

class Worker {
 public:
    Worker(int index, int count, Barrier* barrier)
        : index_(index), count_(count), barrier_(barrier) {}
    int index() const { return index_; }
    int count() const { return count_; }
    void barrier() const {
        if (count_ > 1) barrier_->wait();
    }

 private:
    int index_, count_;
    Barrier* barrier_;
};

// The part [first, last) of n items that worker gets, in whole units.
struct Share {
    std::size_t first, last;
};
Share share(const Worker& worker, std::size_t n, std::size_t unit = 1);

// At least `bytes` bytes of memory of this thread's own, 64-byte aligned, kept until it ends.
// Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);
// The same, apart from it, for memory that the thread which calls run_team lends to the team.
void* team_scratch(std::size_t bytes);

int num_threads();
// Throws std::invalid_argument unless 1 <= n <= 1024.
void set_num_threads(int n);

using TeamFunction = void (*)(void* context, const Worker& worker);
// f must not throw.  max_threads bounds the team for this run, for work too small for all.
void run_team(TeamFunction f, void* context, int max_threads);

template <class F>
void run_team(F&& f, int max_threads = 1 << 20) {
    run_team(
        [](void* context, const Worker& worker) {
            (*static_cast<std::remove_reference_t<F>*>(context))(worker);
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(f))), max_threads);
}

}  // namespace tensor_ops
