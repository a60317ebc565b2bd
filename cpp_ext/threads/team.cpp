#include "threads/team.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "threads/cpu_budget.h"

namespace tensor_ops {
namespace {

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// About 20 to 50 microseconds: longer than the gap between two operations of a layer, shorter than
// anyone would notice on a battery.
constexpr int spins = 1000;

// Returns when value != old, having spun first.
template <class T>
void wait_while_equal(const std::atomic<T>& value, T old) {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause_cpu();
    }
    value.wait(old, std::memory_order_acquire);
}

struct Team {
    std::mutex busy;
    int started = 0;  // helper threads, workers 1 to started
    Barrier barrier;

    // One run: what to do, for how many, and who is done.  A helper wakes when `epoch` changes.
    std::atomic<unsigned> epoch{0};
    TeamFunction function = nullptr;
    void* context = nullptr;
    int count = 1;
    std::atomic<int> running{0};

    // As many as wanted, or as the system lets us have.
    int start_helpers(int helpers) {
        try {
            while (started < helpers) {
                const unsigned seen = epoch.load();
                std::thread([this, index = started + 1, seen] { help(index, seen); }).detach();
                ++started;
            }
        } catch (const std::system_error&) {
        }
        return std::min(started, helpers);
    }

    void help(int index, unsigned seen) {
        for (;;) {
            wait_while_equal(epoch, seen);
            seen = epoch.load(std::memory_order_acquire);
            if (index < count) function(context, Worker(index, count, &barrier));
            // Also those without work report, so that none reads a later run's fields by mistake.
            if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
        }
    }

    void run(TeamFunction f, void* ctx, int threads) {
        threads = 1 + start_helpers(threads - 1);
        function = f;
        context = ctx;
        count = threads;
        barrier.reset(threads);
        running.store(started, std::memory_order_relaxed);
        epoch.fetch_add(1, std::memory_order_acq_rel);
        epoch.notify_all();
        f(ctx, Worker(0, threads, &barrier));
        for (int left = running.load(std::memory_order_acquire); left != 0;
             left = running.load(std::memory_order_acquire))
            wait_while_equal(running, left);
    }
};

std::atomic<int> wanted_threads{0};  // 0: not decided yet
std::atomic<Team*> the_team{nullptr};

Team& team() {
    Team* existing = the_team.load(std::memory_order_acquire);
    if (existing) return *existing;
    // A child of fork() has none of its parent's threads: it forgets that team (and leaks it, as
    // its mutex may be held by a thread that is not here) and begins anew.
    static const int registered = pthread_atfork(
        nullptr, nullptr, [] { the_team.store(nullptr, std::memory_order_relaxed); });
    (void)registered;
    Team* fresh = new Team;
    if (the_team.compare_exchange_strong(existing, fresh)) return *fresh;
    delete fresh;
    return *existing;
}

struct Scratch {
    void* data = nullptr;
    std::size_t size = 0;
    ~Scratch() { std::free(data); }
    void* of(std::size_t bytes) {
        if (size < bytes) {
            std::free(data);
            size = 0;
            const std::size_t rounded = (bytes + 63) / 64 * 64;
            data = std::aligned_alloc(64, rounded);
            if (!data) throw std::bad_alloc();
            size = rounded;
        }
        return data;
    }
};
thread_local Scratch own_scratch, lent_scratch;

}  // namespace

void Barrier::wait() {
    const unsigned generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        generation_.notify_all();
    } else {
        wait_while_equal(generation_, generation);
    }
}

Share share(const Worker& worker, std::size_t n, std::size_t unit) {
    const std::size_t units = (n + unit - 1) / unit;
    const auto index = static_cast<std::size_t>(worker.index());
    const auto count = static_cast<std::size_t>(worker.count());
    return {std::min(n, units * index / count * unit),
            std::min(n, units * (index + 1) / count * unit)};
}

void* thread_scratch(std::size_t bytes) { return own_scratch.of(bytes); }

void* team_scratch(std::size_t bytes) { return lent_scratch.of(bytes); }

int num_threads() {
    int n = wanted_threads.load(std::memory_order_relaxed);
    if (n == 0) {
        n = cpu_budget().chosen;
        wanted_threads.store(n);
    }
    return n;
}

void set_num_threads(int n) {
    if (n < 1 || n > 1024)
        throw std::invalid_argument("number of threads is " + std::to_string(n) +
                                    "; expected 1 to 1024");
    wanted_threads.store(n);
}

void run_team(TeamFunction f, void* context, int max_threads) {
    const int threads = std::min(num_threads(), max_threads);
    if (threads > 1) {
        Team& t = team();
        const std::unique_lock lock(t.busy, std::try_to_lock);
        if (lock.owns_lock()) return t.run(f, context, threads);
    }
    Barrier alone;
    f(context, Worker(0, 1, &alone));
}

}  // namespace tensor_ops
