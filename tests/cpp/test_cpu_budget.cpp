// How many threads: the environment's word, the affinity mask, the cgroup's quota, one a core.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif

#include "check.h"
#include "threads/cpu_budget.h"

using tensor_ops::cpu_budget;
using tensor_ops::CpuBudget;

namespace {

constexpr const char* variable = "TENSOR_OPS_NUM_THREADS";

// Sets or, with nullptr, unsets the variable for one test.
class Environment {
 public:
    explicit Environment(const char* value) {
        if (const char* before = std::getenv(variable)) before_ = before;
        set(value);
    }
    ~Environment() { set(before_.empty() ? nullptr : before_.c_str()); }
    Environment(const Environment&) = delete;

 private:
    static void set(const char* value) {
        if (value)
            setenv(variable, value, 1);
        else
            unsetenv(variable);
    }
    std::string before_;
};

// A folder with the files of /proc and /sys that a test names, each of one line.
class System {
 public:
    explicit System(const std::vector<std::pair<std::string, std::string>>& files) {
        char path[] = "/tmp/test_cpu_budget_XXXXXX";
        root_ = mkdtemp(path);
        for (const auto& [name, line] : files) {
            const std::filesystem::path file = root_ + name;
            std::filesystem::create_directories(file.parent_path());
            std::ofstream(file) << line << '\n';
        }
    }
    ~System() { std::filesystem::remove_all(root_); }
    System(const System&) = delete;
    CpuBudget budget() const { return cpu_budget(root_); }

 private:
    std::string root_;
};

// A system of unified cgroups where this process is in /a/b, and the quota of each level.
System unified(const std::string& top, const std::string& a, const std::string& b) {
    return System({{"/proc/self/cgroup", "0::/a/b"},
                   {"/sys/fs/cgroup/cpu.max", top},
                   {"/sys/fs/cgroup/a/cpu.max", a},
                   {"/sys/fs/cgroup/a/b/cpu.max", b}});
}

}  // namespace

TEST(the_choice_fits_the_machine_and_has_a_reason) {
    const Environment none(nullptr);
    const CpuBudget budget = cpu_budget();
    check::that(budget.affinity >= 1, "CPUs");
    check::that(budget.cores >= 1 && budget.cores <= budget.affinity, "cores");
    check::that(budget.chosen >= 1 && budget.chosen <= budget.cores, "threads");
    if (budget.cgroup_quota)
        check::that(budget.chosen <= std::max(1.0, *budget.cgroup_quota), "threads of the quota");
    check::that(!budget.env, "the environment says nothing");
    check::that(!budget.reason.empty(), "the reason");
}

TEST(the_environment_has_the_last_word) {
    for (const int n : {1, 3, 1024}) {
        const Environment set(std::to_string(n).c_str());
        const CpuBudget budget = cpu_budget();
        check::equal(budget.env.value_or(0), n, "env");
        check::equal(budget.chosen, n, "threads");
        check::equal(budget.reason, std::string(variable), "the reason");
    }
}

TEST(an_empty_variable_is_none) {
    const Environment empty("");
    check::that(!cpu_budget().env, "the environment says nothing");
}

TEST(a_variable_that_is_no_number_from_1_to_1024_is_refused_by_name) {
    for (const char* value : {"0", "-1", "two", "1.5", "1025", "3 ", " 3", "99999999999"}) {
        const Environment set(value);
        check::refused([] { cpu_budget(); },
                       std::string(variable) + " is '" + value + "'; expected a number");
    }
}

#if defined(__linux__)
TEST(an_affinity_mask_of_one_cpu_means_one_thread) {
    const Environment none(nullptr);
    cpu_set_t before, one;
    if (sched_getaffinity(0, sizeof before, &before) != 0) return;  // more than 1024 CPUs
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
        if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    const CpuBudget budget = cpu_budget();
    sched_setaffinity(0, sizeof before, &before);
    check::equal(budget.affinity, 1, "CPUs");
    check::equal(budget.cores, 1, "cores");
    check::equal(budget.chosen, 1, "threads");
    check::equal(cpu_budget().affinity, CPU_COUNT(&before), "CPUs afterwards");
}
#endif

// ---- quotas and cores, of a system made up -----------------------------------------------------

TEST(a_system_that_tells_nothing_has_no_quota_and_a_core_for_each_cpu) {
    const Environment none(nullptr);
    const CpuBudget budget = System({}).budget();
    check::that(!budget.cgroup_quota, "a quota");
    check::equal(budget.cores, budget.affinity, "cores");
    check::equal(budget.chosen, budget.affinity, "threads");
}

#if defined(__linux__)
TEST(hyper_threads_of_one_core_count_once) {
    const Environment none(nullptr);
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof mine, &mine) != 0) return;  // more than 1024 CPUs
    std::vector<std::pair<std::string, std::string>> files;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &mine)) {
            const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
            files.emplace_back(folder + "/topology/thread_siblings_list", "0-1023");
        }
    const CpuBudget budget = System(files).budget();
    check::equal(budget.cores, 1, "cores");
    check::equal(budget.chosen, 1, "threads");
}
#endif

TEST(the_least_quota_of_a_cgroup_and_those_around_it_counts) {
    const Environment none(nullptr);
    const std::string no = "max 100000", more = "400000 100000", least = "150000 100000";
    const auto quota = [](const System& system) {
        return system.budget().cgroup_quota.value_or(-1.0);
    };
    check::equal(quota(unified(least, more, no)), 1.5, "quota at the top");
    check::equal(quota(unified(more, least, no)), 1.5, "quota in the middle");
    check::equal(quota(unified(no, more, least)), 1.5, "quota of its own");
    check::equal(quota(unified(least, more, more)), 1.5, "quota at the top, below larger ones");
    check::that(!unified(no, no, no).budget().cgroup_quota, "a quota where there is none");
}

TEST(a_container_that_does_not_see_its_cgroup_has_the_quota_of_the_mount) {
    const Environment none(nullptr);
    const System inside(
        {{"/proc/self/cgroup", "0::/a/b"}, {"/sys/fs/cgroup/cpu.max", "250000 100000"}});
    check::equal(inside.budget().cgroup_quota.value_or(-1.0), 2.5, "quota");
}

TEST(a_quota_of_the_older_cgroups_is_read_for_the_cpu_controller) {
    const Environment none(nullptr);
    for (const std::string mount : {"cpu", "cpu,cpuacct"}) {
        const std::string folder = "/sys/fs/cgroup/" + mount + "/x/";
        const auto with = [&](const std::string& quota, const std::string& period) {
            return System({{"/proc/self/cgroup", "4:cpu,cpuacct:/x"},
                           {folder + "cpu.cfs_quota_us", quota},
                           {folder + "cpu.cfs_period_us", period}})
                .budget()
                .cgroup_quota;
        };
        check::equal(with("50000", "100000").value_or(-1.0), 0.5, "quota");
        check::that(!with("-1", "100000"), "a quota where there is none");
        check::that(!with("50000", "0"), "a quota of a period that is none");
    }
}

TEST(threads_are_what_the_quota_grants_in_whole_cpus_but_at_least_one) {
    const Environment none(nullptr);
    const std::string no = "max 100000";
    for (const char* quota : {"50000 100000", "190000 100000"}) {
        const CpuBudget budget = unified(no, no, quota).budget();
        check::equal(budget.chosen, 1, quota);
        if (budget.cores > 1)
            check::equal(budget.reason, std::string("the cgroup's CPU quota"), "the reason");
    }
    const CpuBudget budget = unified(no, no, "102400000 100000").budget();
    check::equal(budget.chosen, budget.cores, "threads of a quota beyond the machine");
    const CpuBudget all = unified(no, no, std::to_string(budget.cores) + "00000 100000").budget();
    check::that(all.reason != "the cgroup's CPU quota", "a quota that takes nothing is a reason");
}
