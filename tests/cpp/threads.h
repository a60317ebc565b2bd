// What tests of the team share.
#pragma once

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

inline constexpr int items = 1000, sum_of_items = items * (items + 1) / 2;

// Sums 1 to `items` on the team: each thread its share, the caller the rest after a barrier.
inline int sum_by_team() {
    std::vector<int> parts(1024);
    int total = 0;
    tensor_ops::run_team([&](const tensor_ops::Worker& worker) {
        const auto part = tensor_ops::share(worker, items);
        for (std::size_t i = part.first; i < part.last; ++i)
            parts[static_cast<std::size_t>(worker.index())] += static_cast<int>(i) + 1;
        worker.barrier();
        if (worker.index() == 0)
            for (int w = 0; w < worker.count(); ++w) total += parts[static_cast<std::size_t>(w)];
    });
    return total;
}
