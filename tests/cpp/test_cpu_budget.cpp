// How many threads: the environment's word, the affinity mask, never more than there are CPUs.

#include <cstdlib>
#include <string>

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
