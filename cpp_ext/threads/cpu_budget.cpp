#include "threads/cpu_budget.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace tensor_ops {
namespace {

std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
#if defined(__linux__)
    // The mask grows until the kernel's fits: machines with more than 1024 CPUs exist.
    for (int size = 1024; size <= 1 << 17; size *= 2) {
        cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(size));
        const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(size));
        CPU_ZERO_S(bytes, set);
        const bool ok = sched_getaffinity(0, bytes, set) == 0;
        for (int cpu = 0; ok && cpu < size; ++cpu)
            if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
        CPU_FREE(set);
        if (ok) return cpus;
    }
#endif
    const unsigned n = std::max(1u, std::thread::hardware_concurrency());
    for (unsigned cpu = 0; cpu < n; ++cpu) cpus.push_back(static_cast<int>(cpu));
    return cpus;
}

std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// Two hyper-threads share the units that the kernels fill, so one thread a core is best.
int physical_cores(const std::string& root, const std::vector<int>& cpus) {
    std::set<std::string> cores;
    for (const int cpu : cpus) {
        const std::string siblings =
            first_line(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return static_cast<int>(cores.size());
}

void tighten(std::optional<double>& quota, double micros, double period) {
    if (micros > 0 && period > 0) quota = std::min(quota.value_or(1e9), micros / period);
}

// The path after "hierarchy:controllers:" in /proc/self/cgroup; controllers empty for v2.
std::optional<std::string> cgroup_path(const std::string& root, const std::string& controller) {
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        const auto first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        std::istringstream names(line.substr(first + 1, second - first - 1));
        bool matches = controller.empty() && names.str().empty();
        for (std::string name; std::getline(names, name, ',');) matches |= name == controller;
        if (matches) return line.substr(second + 1);
    }
    return std::nullopt;
}

// Calls f with the mount point joined with path, and with each parent up to the mount point itself.
// Inside a container the path may not be visible; the mount point is then the one that counts.
template <class F>
void for_each_level(const std::string& mount, std::string path, F&& f) {
    for (;;) {
        f(mount + (path == "/" ? "" : path));
        if (path.empty() || path == "/") return;
        path.resize(path.rfind('/'));
    }
}

std::optional<double> cgroup_quota(const std::string& root) {
    std::optional<double> quota;
    if (const auto path = cgroup_path(root, "")) {
        for_each_level(root + "/sys/fs/cgroup", *path, [&](const std::string& dir) {
            std::istringstream line(first_line(dir + "/cpu.max"));
            double micros = 0, period = 0;  // "max 100000" leaves micros at 0
            line >> micros >> period;
            tighten(quota, micros, period);
        });
    }
    if (const auto path = cgroup_path(root, "cpu")) {
        for (const char* mount : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"}) {
            for_each_level(root + mount, *path, [&](const std::string& dir) {
                const std::string micros = first_line(dir + "/cpu.cfs_quota_us");
                const std::string period = first_line(dir + "/cpu.cfs_period_us");
                tighten(quota, std::atof(micros.c_str()), std::atof(period.c_str()));
            });
        }
    }
    return quota;
}

std::optional<int> threads_from_environment() {
    const char* text = std::getenv("TENSOR_OPS_NUM_THREADS");
    if (!text || !*text) return std::nullopt;
    const std::string value(text);
    int n = 0;  // and 0 it stays if the text is no number, or one that is too large
    const char* const end = std::from_chars(value.data(), value.data() + value.size(), n).ptr;
    if (end != value.data() + value.size() || n < 1 || n > 1024)
        throw std::invalid_argument("TENSOR_OPS_NUM_THREADS is '" + value +
                                    "'; expected a number from 1 to 1024");
    return n;
}

}  // namespace

CpuBudget cpu_budget(const std::string& root) {
    const std::vector<int> cpus = allowed_cpus();
    CpuBudget budget;
    budget.affinity = static_cast<int>(cpus.size());
    budget.cores = std::max(1, physical_cores(root, cpus));
    budget.cgroup_quota = cgroup_quota(root);
    budget.env = threads_from_environment();
    // A quota is rounded down: a thread beyond it would be throttled, and the others would wait.
    const int granted =
        budget.cgroup_quota ? std::max(1, static_cast<int>(*budget.cgroup_quota)) : budget.cores;
    if (budget.env) {
        budget.chosen = *budget.env;
        budget.reason = "TENSOR_OPS_NUM_THREADS";
    } else if (granted < budget.cores) {
        budget.chosen = granted;
        budget.reason = "the cgroup's CPU quota";
    } else {
        budget.chosen = budget.cores;
        budget.reason = budget.cores < budget.affinity
                            ? "physical cores among the CPUs this process may use"
                            : "CPUs this process may use";
    }
    return budget;
}

}  // namespace tensor_ops
