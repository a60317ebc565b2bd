// A child of fork() has none of its parent's threads, and starts a team of its own.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "check.h"
#include "threads.h"

namespace {

// The exit status of f() in a child process, or 128 + the signal that ended it; SIGALRM ends one
// that hangs.
template <class F>
int status_of_child(F&& f) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(f() ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

TEST(a_forked_child_starts_a_team_of_its_own) {
    const Threads wanted(3);
    check::equal(sum_by_team(), sum_of_items, "sum before");
    const int status = status_of_child([] {
        std::atomic<int> workers{0};
        tensor_ops::run_team([&](const auto& worker) { wait_for_all(worker, workers); });
        return workers == 3 && sum_by_team() == sum_of_items;
    });
    check::equal(status, 0, "the child's status");
    check::equal(sum_by_team(), sum_of_items, "sum after");
}

TEST(a_child_forked_while_the_team_is_busy_is_not_stuck) {
    const Threads wanted(2);
    std::atomic<bool> stop{false};
    std::thread busy([&] {
        while (!stop) sum_by_team();
    });
    for (int round = 0; round < 5; ++round)
        check::equal(status_of_child([] { return sum_by_team() == sum_of_items; }), 0,
                     "the child's status");
    stop = true;
    busy.join();
}

TEST(a_child_may_have_children) {
    const Threads wanted(2);
    check::equal(sum_by_team(), sum_of_items, "sum before");
    const int status = status_of_child([] {
        return sum_by_team() == sum_of_items &&
               status_of_child([] { return sum_by_team() == sum_of_items; }) == 0;
    });
    check::equal(status, 0, "the child's status");
}
