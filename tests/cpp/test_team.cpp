// The team of threads: whoever calls, from wherever, every run is complete and none waits forever.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "threads.h"
#include "threads/crew.h"

using tensor_ops::Crew;
using tensor_ops::deal;
using tensor_ops::Deal;
using tensor_ops::Joining;
using tensor_ops::run_team;
using tensor_ops::set_num_threads;
using tensor_ops::Worker;

namespace {

// Who comes to a run that waits for all.
struct Census {
    std::atomic<int> arrived{0}, sum_of_indices{0}, wrong{0};
    std::atomic<int> count{0};

    void operator()(const Worker& worker) {
        wrong += worker.index() < 0 || worker.index() >= worker.count();
        sum_of_indices += worker.index();
        count = wait_for_all(worker, arrived);
    }
    bool is_complete() const {
        const int n = count;
        return wrong == 0 && arrived == n && sum_of_indices == n * (n - 1) / 2;
    }
};

}  // namespace

TEST(all_threads_may_come_to_a_run_each_as_another_worker) {
    for (const int threads : {1, 2, 3, 7, 16}) {
        const Threads wanted(threads);
        Census census;
        run_team(census);
        check::equal(census.count.load(), threads, "workers");
        check::that(census.is_complete(), "each index once");
    }
}

#if defined(__linux__)
namespace {

// Waits until all other threads of this process sleep in the kernel.
void wait_until_others_sleep() {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    const auto self = std::to_string(gettid());
    for (bool awake = true; awake && std::chrono::steady_clock::now() < limit;) {
        awake = false;
        for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
            std::ifstream file(task.path() / "stat");
            const std::string stat(std::istreambuf_iterator<char>(file), {});
            const std::size_t name_end = stat.rfind(')');  // "123 (name) S ..."
            awake |= task.path().filename() != self && name_end != std::string::npos &&
                     stat.substr(name_end + 2, 1) == "R";
        }
    }
}

}  // namespace

TEST(threads_that_have_gone_to_sleep_come_to_the_next_run) {
    const Threads wanted(4);
    for (const int most : {4, 3, 4}) {  // all of them, and some of them
        wait_until_others_sleep();
        Census census;
        run_team(census, most);
        check::equal(census.count.load(), most, "workers");
        check::that(census.is_complete(), "each index once");
    }
}
#endif

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
        std::vector<int> reached(static_cast<std::size_t>(threads));  // rounds, by worker
        std::atomic<int> arrived{0}, early{0};
        run_team([&](const Worker& worker) {
            wait_for_all(worker, arrived);
            for (int round = 1; round <= rounds; ++round) {
                reached[static_cast<std::size_t>(worker.index())] = round;
                worker.barrier();
                for (const int other : reached) early += other != round;
                worker.barrier();
            }
        });
        check::equal(early.load(), 0, "workers seen in another round");
    }
}

TEST(a_barrier_serves_threads_that_sleep) {
    const Threads wanted(3);
    std::atomic<int> wrong{0};
    for (int round = 0; round < 20; ++round) {
        std::atomic<int> came{0}, arrived{0};
        run_team([&](const Worker& worker) {
            wait_for_all(worker, came);
            // Long enough for the others to stop spinning and sleep.
            for (int i = 0; worker.index() == round % 3 && i < 300; ++i) std::this_thread::yield();
            arrived += 1;
            worker.barrier();
            wrong += arrived != 3;
        });
    }
    check::equal(wrong.load(), 0, "workers that went ahead");
}

// ---- who comes late ----------------------------------------------------------------------------

TEST(nobody_waits_at_a_barrier_for_a_thread_that_has_not_come) {
    Crew crew;
    crew.open(3, Joining::any_time);
    const Worker caller(0, 3, &crew);
    for (int i = 0; i < 5; ++i) caller.barrier();  // would never end
    check::equal(crew.close(), 1, "workers");
}

TEST(who_comes_late_passes_what_is_done_and_shares_the_rest) {
    Crew crew;
    crew.open(2, Joining::any_time);
    const Worker caller(0, 2, &crew);
    std::size_t done = 0;
    const auto count = [&](std::size_t first, std::size_t last) { done += last - first; };
    for (int op = 0; op < 3; ++op) {
        deal(caller, 100, 1, count);
        caller.barrier();
    }
    check::equal(done, std::size_t{300}, "items of the caller's");
    const Worker late(crew.join(), 2, &crew);
    check::equal(late.index(), 1, "index");
    done = 0;
    for (int op = 0; op < 3; ++op) {
        deal(late, 100, 1, count);
        late.barrier();
    }
    check::equal(done, std::size_t{0}, "items done twice");
    deal(late, 100, 1, count);
    deal(caller, 100, 1, count);
    check::equal(done, std::size_t{100}, "items of the fourth operation");
    check::equal(crew.close(), 2, "workers");
}

TEST(a_run_that_is_closed_takes_no_one) {
    Crew crew;
    check::equal(crew.join(), -1, "index before a run");
    crew.open(2, Joining::any_time);
    check::equal(crew.join(), 1, "index");
    check::equal(crew.join(), -1, "index of a third of two");
    crew.open(2, Joining::any_time);
    crew.close();
    check::equal(crew.join(), -1, "index after a run");
}

TEST(some_runs_take_nobody_after_the_first_barrier) {
    Crew crew;
    crew.open(3, Joining::before_first_barrier);
    const Worker caller(0, 3, &crew);
    caller.barrier();
    check::equal(crew.join(), -1, "index");
}

// ---- several callers ---------------------------------------------------------------------------

TEST(a_run_within_a_run_has_the_caller_alone) {
    const Threads wanted(3);
    std::atomic<int> arrived{0}, inner{0}, not_alone{0};
    run_team([&](const Worker& outer) {
        wait_for_all(outer, arrived);
        run_team([&](const Worker& worker) {
            worker.barrier();
            not_alone += worker.count() != 1 || worker.index() != 0;
            inner += 1;
        });
    });
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

// ---- deals and scratch -------------------------------------------------------------------------

TEST(a_deal_covers_everything_once_in_whole_units) {
    for (const int threads : {1, 2, 3, 7}) {
        const Threads wanted(threads);
        for (const std::size_t n : {0u, 1u, 2u, 15u, 16u, 17u, 100u, 1000u}) {
            for (const std::size_t unit : {1u, 4u, 16u}) {
                std::vector<std::atomic<int>> taken(n);
                std::atomic<int> arrived{0}, broken{0};
                run_team([&](const Worker& worker) {
                    wait_for_all(worker, arrived);
                    deal(worker, n, unit, [&](std::size_t first, std::size_t last) {
                        broken += first >= last || last > n || first % unit != 0;
                        broken += last % unit != 0 && last != n;
                        for (std::size_t i = first; i < last; ++i) ++taken[i];
                    });
                });
                check::equal(broken.load(), 0, "chunks that are not whole units");
                const auto once = [](const std::atomic<int>& times) { return times == 1; };
                check::that(std::all_of(taken.begin(), taken.end(), once), "each item once");
            }
        }
    }
}

TEST(a_deal_gives_its_chunks_to_the_ranges_that_they_lie_in) {
    for (const int threads : {1, 3}) {
        const Threads wanted(threads);
        const std::vector<std::size_t> ends = {0, 10, 10, 11, 60, 100};
        std::vector<std::atomic<int>> taken(100);
        std::atomic<int> arrived{0}, outside{0};
        run_team([&](const Worker& worker) {
            wait_for_all(worker, arrived);
            Deal deal(worker, 100);
            for (std::size_t i = 0; i + 1 < ends.size(); ++i)
                deal.within(ends[i], ends[i + 1], [&](std::size_t first, std::size_t last) {
                    outside += first < ends[i] || last > ends[i + 1];
                    for (std::size_t item = first; item < last; ++item) ++taken[item];
                });
        });
        check::equal(outside.load(), 0, "chunks outside of their range");
        const auto once = [](const std::atomic<int>& times) { return times == 1; };
        check::that(std::all_of(taken.begin(), taken.end(), once), "each item once");
    }
}

TEST(chunks_get_smaller_as_less_is_left_and_are_no_larger_than_asked) {
    Crew crew;
    crew.open(2, Joining::any_time);
    const Worker caller(0, 2, &crew);
    std::vector<std::size_t> sizes;
    const auto note = [&](std::size_t first, std::size_t last) { sizes.push_back(last - first); };
    deal(caller, 64, 1, note);
    check::equal(sizes.front(), std::size_t{16}, "first chunk");
    check::that(std::is_sorted(sizes.rbegin(), sizes.rend()), "a chunk larger than the one before");
    check::equal(sizes.back(), std::size_t{1}, "last chunk");
    sizes.clear();
    Deal(caller, 64, 1, 2).within(0, 64, note);
    check::equal(*std::max_element(sizes.begin(), sizes.end()), std::size_t{2}, "largest chunk");
}

TEST(what_one_worker_throws_ends_the_run_of_all_and_reaches_the_caller) {
    const Threads wanted(3);
    for (int thrower = 0; thrower < 3; ++thrower) {
        std::atomic<int> arrived{0}, beyond{0};
        bool caught = false;
        try {
            run_team([&](const Worker& worker) {
                wait_for_all(worker, arrived);
                worker.barrier();
                if (worker.index() == thrower) throw std::bad_alloc();
                worker.barrier();
                ++beyond;
            });
        } catch (const std::bad_alloc&) {
            caught = true;
        }
        check::that(caught, "the caller knows nothing of it");
        check::equal(beyond.load(), 0, "workers that went on");
        check::equal(sum_by_team(), sum_of_items, "the next run");
    }
}

TEST(a_worker_that_sleeps_at_a_barrier_leaves_when_another_fails) {
    Crew crew;
    crew.open(2, Joining::any_time);
    crew.join();
    std::atomic<bool> left{false};
    {
        const Sleeper waits([&] {
            try {
                Worker(0, 2, &crew).barrier();
            } catch (const Crew::Abandoned&) {
                left = true;
            }
        });
        crew.abandon(std::make_exception_ptr(std::bad_alloc()));
    }
    check::that(left, "it went on");
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

// What a caller lends to the team stays where it is while the callers' own thread works with its
// own.
TEST(what_is_lent_to_the_team_is_not_the_callers_own_scratch) {
    auto* const lent = static_cast<char*>(tensor_ops::team_scratch(1000));
    lent[999] = 42;
    auto* const own = static_cast<char*>(tensor_ops::thread_scratch(200000));
    std::fill_n(own, 200000, char{1});
    check::equal(lent[999], char{42}, "what was lent");
    check::that(tensor_ops::team_scratch(1000) == lent, "it moved");
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)  // these end the process
TEST(scratch_beyond_any_memory_is_refused_and_the_next_is_there) {
    bool thrown = false;
    try {
        tensor_ops::thread_scratch(std::size_t{1} << 62);
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    check::that(thrown, "2^62 bytes of memory");
    auto* const next = static_cast<char*>(tensor_ops::thread_scratch(1000));
    next[999] = 1;
}
#endif
