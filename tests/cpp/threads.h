// What tests of the team share.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "threads/team.h"

// The number of threads that a test asks for, put back at its end.
class Threads {
 public:
    explicit Threads(int n) : before_(tensor_ops::num_threads()) { tensor_ops::set_num_threads(n); }
    ~Threads() { tensor_ops::set_num_threads(before_); }
    Threads(const Threads&) = delete;

 private:
    int before_;
};

// A thread that does some work, which waits for another thread: it sleeps once this is made.  The
// end of its work is waited for.
class Sleeper {
 public:
    template <class Work>
    explicit Sleeper(Work work)
        : thread_([this, work] {
#if defined(__linux__)
              id_ = syscall(SYS_gettid);
#else
              id_ = 1;
#endif
              work();
          }) {
        while (!sleeps()) std::this_thread::yield();
    }
    ~Sleeper() { thread_.join(); }
    Sleeper(const Sleeper&) = delete;

 private:
    bool sleeps() const {
        if (id_ == 0) return false;
        std::ifstream file("/proc/self/task/" + std::to_string(id_) + "/stat");
        std::string stat;
        std::getline(file, stat);
        const std::size_t name_end = stat.rfind(") ");
        return name_end == std::string::npos || stat[name_end + 2] == 'S';  // or it has ended
    }
    std::atomic<long> id_{0};
    std::thread thread_;
};

// Waits until all workers that a run may have are there; returns how many.
inline int wait_for_all(const tensor_ops::Worker& worker, std::atomic<int>& arrived) {
    ++arrived;
    while (arrived < worker.count()) std::this_thread::yield();
    return worker.count();
}

inline constexpr int items = 1000, sum_of_items = items * (items + 1) / 2;

// Sums 1 to `items` on the team: each thread what it is dealt, the caller the rest after a barrier.
inline int sum_by_team() {
    std::vector<int> parts(1024);
    int total = 0;
    tensor_ops::run_team([&](const tensor_ops::Worker& worker) {
        tensor_ops::deal(worker, items, 7, [&](std::size_t first, std::size_t last) {
            for (std::size_t i = first; i < last; ++i)
                parts[static_cast<std::size_t>(worker.index())] += static_cast<int>(i) + 1;
        });
        worker.barrier();
        if (worker.index() == 0)
            for (int w = 0; w < worker.count(); ++w) total += parts[static_cast<std::size_t>(w)];
    });
    return total;
}
