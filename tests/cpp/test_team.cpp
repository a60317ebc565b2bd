// The team of threads: whoever calls, from wherever, every run is complete and none waits forever.

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "threads.h"

using tensor_ops::run_team;
using tensor_ops::set_num_threads;
using tensor_ops::Worker;

namespace {

// How often each worker of a run was called, and that all agree how many there are.
struct Census {
    std::atomic<int> calls{0}, sum_of_indices{0}, disagreements{0};
    std::atomic<int> count{0};

    void operator()(const Worker& worker) {
        int expected = 0;
        if (!count.compare_exchange_strong(expected, worker.count()))
            disagreements += expected != worker.count();
        disagreements += worker.index() < 0 || worker.index() >= worker.count();
        calls += 1;
        sum_of_indices += worker.index();
    }
    bool is_complete() const {
        const int n = count;
        return disagreements == 0 && calls == n && sum_of_indices == n * (n - 1) / 2;
    }
};

}  // namespace

TEST(each_worker_is_called_once) {
    for (const int threads : {1, 2, 3, 7, 16}) {
        const Threads wanted(threads);
        Census census;
        run_team(census);
        check::equal(census.count.load(), threads, "workers");
        check::that(census.is_complete(), "each index once");
    }
}

TEST(the_caller_is_worker_zero) {
    const Threads wanted(3);
    std::thread::id zero;
    run_team([&](const Worker& worker) {
        if (worker.index() == 0) zero = std::this_thread::get_id();
    });
    check::that(zero == std::this_thread::get_id(), "worker 0 is another thread");
}

TEST(the_number_of_threads_may_change_between_runs) {
    for (int round = 0; round < 200; ++round) {
        const int threads = 1 + round * 5 % 6;
        const Threads wanted(threads);
        Census census;
        run_team(census);
        check::equal(census.count.load(), threads, "workers");
        check::that(census.is_complete(), "each index once");
    }
}

TEST(a_run_may_ask_for_fewer_threads) {
    const Threads wanted(4);
    for (const int most : {0, 1, 2, 4, 100}) {
        Census census;
        run_team(census, most);
        check::equal(census.count.load(), std::max(1, std::min(most, 4)), "workers");
        check::that(census.is_complete(), "each index once");
    }
}

TEST(a_number_of_threads_out_of_range_is_refused_and_changes_nothing) {
    const Threads wanted(3);
    for (const int n : {0, -1, 1025})
        check::refused([n] { set_num_threads(n); }, std::to_string(n) + "; expected 1 to 1024");
    check::equal(tensor_ops::num_threads(), 3, "threads");
}

TEST(many_runs_in_a_row_are_all_complete) {
    const Threads wanted(3);
    int wrong = 0;
    for (int round = 0; round < 3000; ++round) wrong += sum_by_team() != sum_of_items;
    check::equal(wrong, 0, "wrong sums");
}

// ---- barriers ----------------------------------------------------------------------------------

TEST(no_worker_passes_a_barrier_before_all_have_come) {
    for (const int threads : {1, 2, 3, 5}) {
        const Threads wanted(threads);
        constexpr int rounds = 300;
        std::vector<int> arrived(static_cast<std::size_t>(threads));  // rounds, by worker
        std::atomic<int> early{0};
        run_team([&](const Worker& worker) {
            for (int round = 1; round <= rounds; ++round) {
                arrived[static_cast<std::size_t>(worker.index())] = round;
                worker.barrier();
                for (const int other : arrived) early += other != round;
                worker.barrier();
            }
        });
        check::equal(early.load(), 0, "workers seen in another round");
    }
}

TEST(a_barrier_serves_threads_that_come_late) {
    const Threads wanted(3);
    std::atomic<int> wrong{0};
    for (int round = 0; round < 20; ++round) {
        std::atomic<int> arrived{0};
        run_team([&](const Worker& worker) {
            // Long enough for the others to stop spinning and sleep.
            for (int i = 0; worker.index() == round % 3 && i < 300; ++i) std::this_thread::yield();
            arrived += 1;
            worker.barrier();
            wrong += arrived != 3;
        });
    }
    check::equal(wrong.load(), 0, "workers that went ahead");
}

// ---- several callers ---------------------------------------------------------------------------

TEST(a_run_within_a_run_has_the_caller_alone) {
    const Threads wanted(3);
    std::atomic<int> outer{0}, inner{0}, not_alone{0};
    run_team([&](const Worker&) {
        outer += 1;
        run_team([&](const Worker& worker) {
            worker.barrier();
            not_alone += worker.count() != 1 || worker.index() != 0;
            inner += 1;
        });
    });
    check::equal(outer.load(), 3, "outer calls");
    check::equal(inner.load(), 3, "inner calls");
    check::equal(not_alone.load(), 0, "inner workers of a larger team");
}

TEST(threads_that_call_at_once_all_get_right_answers) {
    const Threads wanted(3);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&] {
            for (int round = 0; round < 500; ++round) wrong += sum_by_team() != sum_of_items;
        });
    for (std::thread& caller : callers) caller.join();
    check::equal(wrong.load(), 0, "wrong sums");
}

TEST(the_number_of_threads_may_change_while_others_run) {
    const Threads wanted(2);
    std::atomic<int> wrong{0};
    std::thread other([&] {
        for (int round = 0; round < 500; ++round) wrong += sum_by_team() != sum_of_items;
    });
    for (int round = 0; round < 500; ++round) {
        set_num_threads(1 + round % 4);
        wrong += sum_by_team() != sum_of_items;
    }
    other.join();
    check::equal(wrong.load(), 0, "wrong sums");
}

// ---- shares and scratch ------------------------------------------------------------------------

TEST(shares_are_whole_units_and_cover_everything_once) {
    for (const int count : {1, 2, 3, 7}) {
        for (const std::size_t n : {0u, 1u, 2u, 15u, 16u, 17u, 100u}) {
            for (const std::size_t unit : {1u, 4u, 16u}) {
                std::size_t next = 0;
                for (int index = 0; index < count; ++index) {
                    const auto part = tensor_ops::share(Worker(index, count, nullptr), n, unit);
                    check::equal(part.first, next, "where a share starts");
                    check::that(part.first % unit == 0 || part.first == n, "whole units");
                    check::that(part.first <= part.last, "a share ends before it starts");
                    next = part.last;
                }
                check::equal(next, n, "where the last share ends");
            }
        }
    }
}

TEST(scratch_is_aligned_kept_and_each_threads_own) {
    auto* const mine = static_cast<char*>(tensor_ops::thread_scratch(1000));
    check::equal(reinterpret_cast<std::uintptr_t>(mine) % 64, std::uintptr_t{0}, "alignment");
    mine[999] = 42;
    check::that(tensor_ops::thread_scratch(10) == mine && mine[999] == 42, "it moved");
    std::thread([&] {
        auto* const other = static_cast<char*>(tensor_ops::thread_scratch(1000));
        check::that(other != mine, "another thread got the same memory");
        other[999] = 1;
    }).join();
    check::equal(mine[999], char{42}, "what it holds");
    auto* const larger = static_cast<char*>(tensor_ops::thread_scratch(100000));
    larger[99999] = 1;
}
