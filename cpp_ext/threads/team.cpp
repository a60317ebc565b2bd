#include "threads/team.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "threads/allocations.h"
#include "threads/cpu_budget.h"
#include "threads/crew.h"
#include "threads/waiting.h"

namespace tensor_ops {
namespace {

struct Team {
    std::mutex busy;
    int started = 0;  // helper threads

    // One run: its function and context, and how many of the helpers that joined have left.
    // Helpers wake when `epoch` changes, and may join whichever run is open then.
    std::atomic<unsigned> epoch{0};
    TeamFunction function = nullptr;
    void* context = nullptr;
    Crew crew;
    std::atomic<int> left{0};

    // Starts helper threads, as far as the system permits; returns how many of `helpers` there are.
    int start_helpers(int helpers) {
        try {
            while (started < helpers) {
                const unsigned seen = epoch.load();
                std::thread([this, seen] { help(seen); }).detach();
                ++started;
            }
        } catch (const std::system_error&) {
        }
        return std::min(started, helpers);
    }

    void help(unsigned seen) {
        for (;;) {
            wait_while_equal(epoch, seen);
            seen = epoch.load(std::memory_order_acquire);
            const int index = crew.join();
            if (index < 0) continue;
            work(Worker(index, crew.limit(), &crew));
            left.fetch_add(1, std::memory_order_acq_rel);
            left.notify_one();
        }
    }

    void run(TeamFunction f, void* ctx, int threads, Joining joining) {
        const int helpers = start_helpers(threads - 1);
        function = f;
        context = ctx;
        left.store(0, std::memory_order_relaxed);
        crew.open(1 + helpers, joining);
        epoch.fetch_add(1, std::memory_order_acq_rel);
        if (helpers == started)
            epoch.notify_all();
        else
            for (int i = 0; i < helpers; ++i) epoch.notify_one();
        work(Worker(0, 1 + helpers, &crew));
        const int others = crew.close() - 1;
        for (int n = left.load(std::memory_order_acquire); n != others;
             n = left.load(std::memory_order_acquire))
            wait_while_equal(left, n);
        if (const std::exception_ptr failure = crew.take_failure()) std::rethrow_exception(failure);
    }

    // A worker's part in the run.  An exception must not leave before all workers have left: they
    // work with what it would destroy.
    void work(const Worker& worker) noexcept {
        try {
            function(context, worker);
        } catch (const Crew::Abandoned&) {
        } catch (...) {
            crew.abandon(std::current_exception());
        }
    }
};

std::atomic<int> wanted_threads{0};  // 0: not decided yet
std::atomic<Team*> the_team{nullptr};

Team& team() {
    Team* existing = the_team.load(std::memory_order_acquire);
    if (existing) return *existing;
    // A child of fork() has none of its parent's threads: it forgets that team (and leaks it, as a
    // thread that the child does not have may hold the mutex) and starts a new one.
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
            ++allocations;
        }
        return data;
    }
};
thread_local Scratch own_scratch, lent_scratch;

}  // namespace

void Worker::barrier() const {
    if (crew_) crew_->meet(barriers_);
    ++barriers_;
}

Deal::Deal(const Worker& worker, std::size_t n, std::size_t unit, std::size_t largest)
    : worker_(worker), n_(n), unit_(unit), largest_(largest), step_(++worker.deals_) {
    take();
}

void Deal::take() {
    const std::size_t units = (n_ + unit_ - 1) / unit_;
    std::size_t first = last_ == 0 ? 0 : units, last = units;  // a team of one takes all at once
    const bool got =
        worker_.crew_ ? worker_.crew_->claim(step_, units, largest_, first, last) : first < units;
    first_ = got ? first * unit_ : ~std::size_t{0};
    last_ = got ? std::min(last * unit_, n_) : ~std::size_t{0};
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

void run_team(TeamFunction f, void* context, int max_threads, Joining joining) {
    const int threads = std::min(num_threads(), max_threads);
    if (threads > 1) {
        Team& t = team();
        const std::unique_lock lock(t.busy, std::try_to_lock);
        if (lock.owns_lock()) return t.run(f, context, threads, joining);
    }
    f(context, Worker(0, 1, nullptr));
}

}  // namespace tensor_ops
