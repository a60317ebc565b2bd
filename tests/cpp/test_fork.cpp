// A child of fork() has none of its parent's threads, and starts a team of its own; of a stream it
// can only let go.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>

#include "check.h"
#include "stream/stream.h"
#include "temporary_file.h"
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

namespace {

// An endless stream of a section of a new file, which is read by io_uring if the kernel has it.
struct OwnStream {
    const TemporaryFile file{10'000};
    std::optional<tensor_ops::stream::Stream> stream;

    OwnStream() {
        const tensor_ops::stream::Take nothing = [](std::span<const std::byte>, std::size_t) {};
        std::vector<tensor_ops::stream::Section> sections = {
            {{0, 0, 10'000, 1, {nothing, nothing}}}};
        stream.emplace(std::vector{file.opened(false)}, std::move(sections),
                       tensor_ops::stream::Options{});
        take(1);
    }
    OwnStream(const OwnStream&) = delete;

    void take(int sections) {
        for (int i = 0; i < sections; ++i) {
            check::that(stream->take(std::chrono::seconds(60)).has_value(), "nothing came");
            stream->release();
        }
    }
};

}  // namespace

TEST(a_stream_goes_on_when_a_child_has_closed_or_dropped_it) {
    OwnStream own;
    const int closed = status_of_child([&] {
        own.stream->close();
        return true;
    });
    check::equal(closed, 0, "the status of a child that closes it");
    own.take(5);
    const int dropped = status_of_child([&] {
        own.stream.reset();
        return true;
    });
    check::equal(dropped, 0, "the status of a child that drops it");
    own.take(5);
}

TEST(a_child_is_told_to_open_a_stream_of_its_own) {
    OwnStream own;
    const int status = status_of_child([&] {
        try {
            own.stream->take(std::chrono::milliseconds(0));
        } catch (const std::logic_error& error) {
            return std::string(error.what()).find("before fork()") != std::string::npos;
        }
        return false;
    });
    check::equal(status, 0, "the child's status");
}
