// How many threads this process should use, by the CPUs that it may run on, their physical cores,
// and the cgroup's quota.
#pragma once

#include <optional>
#include <string>

namespace tensor_ops {

struct CpuBudget {
    int affinity;                        // logical CPUs that this process may run on
    int cores;                           // physical cores among them
    std::optional<double> cgroup_quota;  // in CPUs' worth of time, the least of the hierarchy
    std::optional<int> env;              // TENSOR_OPS_NUM_THREADS
    int chosen;
    std::string reason;  // for `chosen`, in words
};

// Reads the environment and /proc, /sys afresh.  Throws std::invalid_argument when
// TENSOR_OPS_NUM_THREADS is set but is no number from 1 to 1024.
// root: the folder that holds proc and sys, for tests.
CpuBudget cpu_budget(const std::string& root = "");

}  // namespace tensor_ops
