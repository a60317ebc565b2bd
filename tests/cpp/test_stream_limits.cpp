// The stream's own resources: descriptors, buffers, threads and their number; what it does with
// none of them, and that it gives them back.

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>

#include "check.h"
#include "stream/reader.h"
#include "stream/stream.h"
#include "temporary_file.h"
#include "threads.h"

using namespace std::chrono_literals;
using tensor_ops::stream::File;
using tensor_ops::stream::MakeRequests;
using tensor_ops::stream::Options;
using tensor_ops::stream::Outcome;
using tensor_ops::stream::Range;
using tensor_ops::stream::Read;
using tensor_ops::stream::Requests;
using tensor_ops::stream::Section;
using tensor_ops::stream::Stream;

namespace {

Range range(std::uint64_t offset, std::size_t bytes, std::size_t unit = 1) {
    const tensor_ops::stream::Take nothing = [](std::span<const std::byte>, std::size_t) {};
    return {0, offset, bytes, unit, {nothing, nothing}};
}

// Requests that a test looks at: `started` sees each read, which then succeeds with whatever its
// memory holds.
struct Watched {
    std::mutex mutex;
    std::function<void(const Read&)> started = [](const Read&) {};
    std::function<void(const Read&)> ending = [](const Read&) {};
    std::vector<std::size_t> depths;  // of each reader

    MakeRequests make() {
        return [this](std::size_t depth) {
            depths.push_back(depth);
            return std::make_unique<Own>(*this);
        };
    }

 private:
    struct Own : Requests {
        explicit Own(Watched& all_) : all(all_) {}
        void start(std::size_t tag, const Read& read) override {
            const std::lock_guard lock(all.mutex);
            all.started(read);
            waiting.emplace_back(tag, read);
        }
        Outcome finish() override {
            const std::lock_guard lock(all.mutex);
            const auto [tag, read] = waiting.front();
            waiting.pop_front();
            all.ending(read);
            return Outcome{tag, static_cast<ssize_t>(read.bytes)};
        }
        void cancel() override {}
        Watched& all;
        std::deque<std::pair<std::size_t, Read>> waiting;
    };
};

void take_all(Stream& stream, std::size_t sections) {
    for (std::size_t i = 0; i < sections; ++i) {
        check::that(stream.take(60s).has_value(), "nothing came");
        stream.release();
    }
}

#if defined(__linux__)
std::size_t entries(const char* folder) {
    std::size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder)) ++n;
    return n;
}
std::size_t open_descriptors() { return entries("/proc/self/fd"); }
#endif

}  // namespace

// ---- files -------------------------------------------------------------------------------------

#if defined(__linux__)
TEST(a_file_has_descriptors_of_its_own_and_closes_them) {
    const TemporaryFile given(10);
    const std::size_t before = open_descriptors();
    for (const bool direct : {false, true}) {
        {
            const File file(given.descriptor(), "the file", direct);
            check::that(file.descriptor() != given.descriptor(), "the caller's descriptor");
            check::that(fcntl(file.descriptor(), F_GETFD) & FD_CLOEXEC, "programs inherit it");
        }
        check::equal(open_descriptors(), before, "descriptors afterwards");
        check::that(fcntl(given.descriptor(), F_GETFD) >= 0, "the caller's was closed");
    }
}
#endif

TEST(a_descriptor_that_is_none_is_an_error_with_the_files_name) {
    try {
        const File file(-1, "the file", false);
        check::that(false, "nothing was thrown");
    } catch (const std::system_error& error) {
        check::equal(error.code().value(), EBADF, "errno");
        check::that(std::string(error.what()).starts_with("the file"), error.what());
    }
}

TEST(a_file_has_changed_if_its_size_or_either_part_of_its_time_has) {
    const TemporaryFile given(10);
    struct stat status{};
    fstat(given.descriptor(), &status);
    const auto set_time = [&](time_t seconds, long nanoseconds) {
        const timespec times[] = {{0, UTIME_OMIT}, {seconds, nanoseconds}};
        check::equal(futimens(given.descriptor(), times), 0, "futimens");
    };
    set_time(1000, 500);
    const File file(given.descriptor(), "the file", false);
    check::that(!file.changed(), "it has changed before anything happened");
    set_time(1001, 500);
    check::that(file.changed(), "another second");
    set_time(1000, 501);
    check::that(file.changed(), "another nanosecond");
    set_time(1000, 500);
    check::that(!file.changed(), "it is as it was");
    check::equal(ftruncate(given.descriptor(), 11), 0, "ftruncate");
    set_time(1000, 500);
    check::that(file.changed(), "another size");
    check::equal(file.size(), std::uint64_t{11}, "size");
}

// ---- buffers and reads -------------------------------------------------------------------------

// A direct read begins and ends at whole sectors, so it may take one more than its piece
// has: 8,192 bytes from offset 4,095 on lie in three.
TEST(reads_under_way_have_memory_of_their_own) {
    const TemporaryFile given(1 << 20);
    Watched watched;
    std::set<std::pair<std::byte*, std::byte*>> under_way;
    bool overlap = false;
    watched.started = [&](const Read& read) {
        for (const auto& [begin, end] : under_way)
            overlap |= read.memory < end && begin < read.memory + read.bytes;
        under_way.emplace(read.memory, read.memory + read.bytes);
    };
    watched.ending = [&](const Read& read) {
        under_way.erase({read.memory, read.memory + read.bytes});
    };
    Options options;
    options.threads = 1;
    options.depth = 4;
    options.piece_bytes = 8192;
    const auto file = given.opened(true);
    Stream stream({file}, {{range(4095, 200'000)}, {range(1, 200'000)}}, options, watched.make());
    take_all(stream, 2);
    check::that(!overlap, "two reads into the same memory");
}

// Linux reads less than 2 GiB at a time.  Nothing touches the memory of this piece.
TEST(a_piece_of_more_than_a_gibibyte_is_read_in_parts) {
    const TemporaryFile given(std::int64_t{2} << 30);
    Watched watched;
    std::size_t longest = 0, parts = 0;
    watched.started = [&](const Read& read) {
        longest = std::max(longest, read.bytes);
        ++parts;
    };
    constexpr std::size_t piece = (std::size_t{1} << 30) + 1;
    Options options;
    options.endless = false;
    Stream stream({given.opened(false)}, {{range(0, piece, piece)}}, options, watched.make());
    take_all(stream, 1);
    check::equal(longest, std::size_t{1} << 30, "bytes at a time");
    check::equal(parts, std::size_t{2}, "parts");
}

TEST(a_read_that_would_have_to_wait_is_repeated) {
    const TemporaryFile given(10'000);
    struct Unwilling : Requests {
        void start(std::size_t tag_, const Read& read_) override { tag = tag_, read = read_; }
        Outcome finish() override {
            return Outcome{tag, ++calls < 3 ? -EAGAIN : static_cast<ssize_t>(read.bytes)};
        }
        void cancel() override {}
        std::size_t tag = 0;
        Read read{};
        int calls = 0;
    };
    Options options;
    options.depth = 1;
    Stream stream({given.opened(false)}, {{range(0, 10'000)}}, options,
                  [](std::size_t) { return std::make_unique<Unwilling>(); });
    take_all(stream, 1);
}

TEST(memory_that_cannot_be_had_is_said_so) {
    const TemporaryFile given(10);
    constexpr std::size_t piece = SIZE_MAX / 4;  // the largest that makes sense
    bool thrown = false;
    try {
        Stream({given.opened(false)}, {{range(0, piece, piece)}}, {});
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    check::that(thrown, "2^62 bytes of memory");
}

// ---- how many ----------------------------------------------------------------------------------

TEST(the_depth_is_divided_among_the_threads) {
    const TemporaryFile given(100'000);
    const struct {
        std::size_t threads, depth, unit;
        std::vector<std::size_t> depths;
    } wanted[] = {
        {2, 10, 1, {5, 5}},
        {4, 1, 1, {1}},           // no thread without a read
        {2, 10, 40'960, {1, 1}},  // units of five pieces: as many reads as fit into their memory
        {2, 3, 100'000, {1}},     // at least one, whatever it takes
    };
    for (const auto& [threads, depth, unit, depths] : wanted) {
        Watched watched;
        Options options;
        options.threads = threads;
        options.depth = depth;
        options.piece_bytes = 8192;
        Stream stream({given.opened(false)}, {{range(0, 100'000, unit)}}, options, watched.make());
        take_all(stream, 2);
        const std::size_t all = depths.size() * depths[0];
        check::equal(stream.stats().depth, all, "reads under way");
        check::that(stream.stats().buffer_bytes >= all * std::max<std::size_t>(unit, 8192),
                    "bytes of all buffers");
        check::that(watched.depths == depths, std::to_string(threads) + " threads, " +
                                                  std::to_string(watched.depths.size()) +
                                                  " readers");
    }
}

// Each piece waits in its place for the others.
TEST(without_io_uring_there_is_a_thread_for_each_read) {
    const TemporaryFile given(30);
    Options options;
    options.threads = 1;
    options.depth = 3;
    options.piece_bytes = 10;
    options.uring = false;
    std::atomic<int> there{0};
    Range whole = range(0, 30);
    whole.takes.assign(2, [&](std::span<const std::byte>, std::size_t) {
        ++there;
        const auto limit = std::chrono::steady_clock::now() + 60s;
        while (there < 3 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    });
    options.endless = false;
    Stream stream({given.opened(false)}, {{whole}}, options);
    const auto start = std::chrono::steady_clock::now();
    take_all(stream, 1);
    check::that(std::chrono::steady_clock::now() - start < 60s, "one after the other");
}

TEST(options_of_zero_and_ranges_beyond_64_bits_are_refused) {
    const TemporaryFile given(10);
    for (const auto member :
         {&Options::slots, &Options::threads, &Options::depth, &Options::piece_bytes}) {
        Options options;
        options.*member = 0;
        check::refused([&] { Stream({given.opened(false)}, {{range(0, 10)}}, options); },
                       "Stream: no");
    }
    for (const Range& bad :
         {range(0, 10, 0), range(UINT64_MAX / 4 + 1, 10), range(0, SIZE_MAX / 4 + 1, SIZE_MAX)})
        check::refused([&] { Stream({given.opened(false)}, {{bad}}, {}); },
                       "a range makes no sense");
    Stream endless({given.opened(false)}, {{range(UINT64_MAX / 4, 10)}}, {});
    check::refused([&] { endless.push({range(0, 10)}); }, "an endless one has its sections");
}

TEST(a_system_that_grants_no_reads_is_said_so) {
    const TemporaryFile given(10);
    check::refused(
        [&] {
            Stream({given.opened(false)}, {{range(0, 10)}}, {},
                   [](std::size_t) { return nullptr; });
        },
        "no reads are possible");
}

TEST(reads_that_fail_or_are_given_up_say_so) {
    int ends[2];
    check::equal(pipe(ends), 0, "pipe");
    const TemporaryFile given(10);
    for (const auto make :
         {tensor_ops::stream::uring_requests, tensor_ops::stream::blocking_requests}) {
        const auto requests = make(2);
        if (!requests) continue;  // no io_uring
        std::byte memory[10];
        const auto result = [&](std::size_t tag) {
            const Outcome outcome = requests->finish();
            check::equal(outcome.tag, tag, "tag");
            return outcome.result;
        };
        requests->start(0, {-1, memory, 10, 0});
        check::equal(result(0), ssize_t{-EBADF}, "a descriptor that is none");
        requests->start(1, {given.descriptor(), memory, 10, 4});
        check::equal(result(1), ssize_t{6}, "up to the end of the file");
        requests->start(0, {ends[0], memory, 10, 0});  // in which there is nothing
        requests->cancel();
        check::equal(result(0), ssize_t{-ECANCELED}, "a read under way");
        requests->start(1, {given.descriptor(), memory, 10, 0});
        check::equal(result(1), ssize_t{-ECANCELED}, "a read that begins later");
    }
    close(ends[0]);
    close(ends[1]);
}

#if defined(__linux__)
TEST(a_signal_in_the_middle_of_a_wait_is_no_end_of_a_read) {
    int ends[2];
    check::equal(pipe(ends), 0, "pipe");
    const auto requests = tensor_ops::stream::uring_requests(1);
    if (requests) {
        struct sigaction before{}, nothing{};
        nothing.sa_handler = [](int) {};
        sigaction(SIGUSR1, &nothing, &before);
        std::byte memory[10];
        std::atomic<pthread_t> thread{};
        Outcome outcome{9, 0};
        {
            const Sleeper waiting([&] {
                thread = pthread_self();
                requests->start(0, {ends[0], memory, 10, 0});
                outcome = requests->finish();
            });
            pthread_kill(thread, SIGUSR1);
            check::equal(write(ends[1], "words", 5), ssize_t{5}, "bytes written");
        }
        sigaction(SIGUSR1, &before, nullptr);
        check::equal(outcome.tag, std::size_t{0}, "tag");
        check::equal(outcome.result, ssize_t{5}, "bytes");
    }
    close(ends[0]);
    close(ends[1]);
}

TEST(pages_descriptors_and_queues_go_back_to_the_system) {
    std::byte* memory = tensor_ops::stream::Pages(4096).data();
    unsigned char resident = 0;
    check::equal(mincore(memory, 4096, &resident), -1, "pages that are mapped");
    const std::size_t before = open_descriptors();
    tensor_ops::stream::uring_requests(4).reset();
    // Fewer, if a stream of another test has ended only now.
    check::that(open_descriptors() <= before, "descriptors that nobody closes");
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);)
        check::that(line.find("io_uring") == std::string::npos, line);
}

// The ring's descriptor is none for the moment, as if the kernel lacked the memory for a read.
TEST(a_read_that_a_ring_does_not_take_is_done_and_is_not_in_it_later) {
    const TemporaryFile given(10);
    const auto requests = tensor_ops::stream::uring_requests(2);
    if (!requests) return;
    int ring = -1;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
        std::error_code none;
        if (read_symlink(entry.path(), none).string().find("io_uring") != std::string::npos)
            ring = std::stoi(entry.path().filename());
    }
    const int kept = dup(ring);
    close(ring);
    std::byte memory[10];
    requests->start(0, {given.descriptor(), memory, 10, 0});
    check::equal(dup2(kept, ring), ring, "dup2");
    close(kept);
    requests->start(1, {given.descriptor(), memory, 10, 4});
    for (const std::size_t tag : {0u, 1u}) {
        const Outcome outcome = requests->finish();
        check::equal(outcome.tag, tag, "tag");
        check::equal(outcome.result, ssize_t{tag ? 6 : 10}, "bytes");
    }
}

TEST(without_a_descriptor_for_io_uring_there_is_none) {
    rlimit before{};
    getrlimit(RLIMIT_NOFILE, &before);
    const int next = dup(0);
    close(next);
    for (const int most : {0, next + 1}) {  // none, or the ring's alone
        const rlimit few{static_cast<rlim_t>(most), before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
        const bool granted = tensor_ops::stream::uring_requests(4) != nullptr;
        setrlimit(RLIMIT_NOFILE, &before);
        check::that(!granted, "reads by io_uring");
    }
}
#endif

// ---- threads -----------------------------------------------------------------------------------

// A signal is for the program's own threads: Python's handlers run on its main thread.
TEST(the_threads_take_no_signals_and_the_callers_go_on_taking_them) {
    const TemporaryFile given(10);
    Watched watched;
    std::atomic<int> takes_signals{-1}, hides_crashes{-1};
    watched.ending = [&](const Read&) {
        sigset_t blocked;
        pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        takes_signals = !sigismember(&blocked, SIGINT) || !sigismember(&blocked, SIGTERM);
        hides_crashes = sigismember(&blocked, SIGSEGV) || sigismember(&blocked, SIGBUS);
    };
    Stream stream({given.opened(false)}, {{range(0, 10)}}, {}, watched.make());
    take_all(stream, 1);
    check::equal(takes_signals.load(), 0, "a reading thread takes signals");
    check::equal(hides_crashes.load(), 0, "a crash of a reading thread would have no report");
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    check::that(!sigismember(&blocked, SIGINT), "the caller takes no signals any more");
}

TEST(a_close_ends_a_wait_on_another_thread) {
    const TemporaryFile given(10);
    std::atomic<bool> ended{false};
    struct Stalled : Requests {
        void start(std::size_t, const Read&) override {}
        Outcome finish() override {
            std::unique_lock lock(mutex);
            over.wait(lock, [&] { return cancelled; });
            return {0, -ECANCELED};
        }
        void cancel() override {
            const std::lock_guard lock(mutex);
            cancelled = true;
            over.notify_all();
        }
        std::mutex mutex;
        std::condition_variable over;
        bool cancelled = false;
    };
    Options options;
    options.depth = 1;
    Stream stream({given.opened(false)}, {{range(0, 10)}}, options,
                  [](std::size_t) { return std::make_unique<Stalled>(); });
    {
        const Sleeper waiting([&] {
            try {
                stream.take(60s);
            } catch (const std::logic_error&) {
                ended = true;
            }
        });
        stream.close();
    }
    check::that(ended.load(), "the wait went on, or something came");
}

TEST(a_close_waits_for_the_reads_that_the_system_does_not_give_up) {
    const TemporaryFile given(100'000);
    struct Counts {  // outlives the test, as the stream's thread may
        std::atomic<int> begun{0}, ended{0};
    };
    const auto counts = std::make_shared<Counts>();
    struct Counted : Requests {
        explicit Counted(std::shared_ptr<Counts> counts_) : counts(std::move(counts_)) {}
        void start(std::size_t tag, const Read& read) override {
            waiting.emplace_back(tag, read.bytes);
            ++counts->begun;
        }
        Outcome finish() override {
            {
                std::unique_lock lock(mutex);
                over.wait(lock, [&] { return cancelled; });
            }
            const auto [tag, bytes] = waiting.front();
            waiting.pop_front();
            ++counts->ended;
            return {tag, static_cast<ssize_t>(bytes)};
        }
        void cancel() override {
            const std::lock_guard lock(mutex);
            cancelled = true;
            over.notify_all();
        }
        std::shared_ptr<Counts> counts;
        std::deque<std::pair<std::size_t, std::size_t>> waiting;
        std::mutex mutex;
        std::condition_variable over;
        bool cancelled = false;
    };
    Options options;
    options.depth = 4;
    options.threads = 1;
    options.piece_bytes = 10'000;
    std::atomic<int> taken{0};  // not after the close, so it may lie here
    Range whole = range(0, 100'000);
    whole.takes.assign(2, [&](std::span<const std::byte>, std::size_t) { ++taken; });
    {
        Stream stream({given.opened(false)}, {{whole}}, options,
                      [&](std::size_t) { return std::make_unique<Counted>(counts); });
        while (counts->begun < 4) std::this_thread::yield();
    }
    const auto limit = std::chrono::steady_clock::now() + 60s;
    while (counts->ended < 4 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    check::equal(counts->ended.load(), 4, "reads that were waited for");
    check::equal(taken.load(), 0, "pieces handed over after the close");
}

TEST(a_close_is_over_when_the_last_thread_is) {
    const TemporaryFile given(10);
    auto fastest = std::chrono::steady_clock::duration::max();
    for (int i = 0; i < 20; ++i) {
        Stream stream({given.opened(false)}, {{range(0, 10)}}, {});
        const auto start = std::chrono::steady_clock::now();
        stream.close();
        fastest = std::min(fastest, std::chrono::steady_clock::now() - start);
    }
    check::that(fastest < 100ms, "it waited on, as for a disk that stalls");
}

// A close that waits in vain, as for a disk that stalls, returns after 200 ms; on a busy machine a
// thread may take that long to end.
TEST(the_files_of_a_stream_are_closed_when_it_ends) {
    const TemporaryFile given(10);
    int ended = 0, open = 0;
    for (int i = 0; i < 200; ++i) {
        std::weak_ptr<File> file;
        const auto start = std::chrono::steady_clock::now();
        {
            const auto opened = given.opened(false);
            file = opened;
            const Stream stream({opened}, {{range(0, 10)}}, {});
        }
        if (std::chrono::steady_clock::now() - start >= 200ms) continue;
        ++ended;
        open += !file.expired();
    }
    check::that(ended > 0, "no close returned in time");
    check::equal(open, 0, "files that were open after the end");
}

TEST(a_close_waits_for_what_is_being_put_in_its_place) {
    const TemporaryFile given(10);
    std::atomic<bool> begun{false}, ended{false};
    Range slow = range(0, 10);
    slow.takes.assign(2, [&](std::span<const std::byte>, std::size_t) {
        begun = true;
        // Longer than a close waits for a disk.
        const auto end = std::chrono::steady_clock::now() + 300ms;
        while (std::chrono::steady_clock::now() < end) std::this_thread::yield();
        ended = true;
    });
    Stream stream({given.opened(false)}, {{slow}}, {});
    while (!begun) std::this_thread::yield();
    stream.close();
    check::that(ended.load(), "its memory may be gone by now");
}

#if defined(__linux__)
// Bytes that were just written go to the disk before they are read past the page cache, so that
// the reads are still under way when the stream ends.
TEST(memory_that_is_mapped_after_a_stream_is_not_written_to_by_its_reads) {
    constexpr std::size_t bytes = 4u << 20;
    const TemporaryFile given(bytes);
    const std::vector<std::byte> content(bytes, std::byte{0x55});
    std::size_t changed = 0;
    for (int round = 0; round < 20; ++round) {
        check::equal(pwrite(given.descriptor(), content.data(), bytes, 0),
                     static_cast<ssize_t>(bytes), "bytes written");
        {
            const Stream stream({given.opened(true)}, {{range(0, bytes)}}, {});
        }
        tensor_ops::stream::Pages pages(2 * bytes);
        const std::span after{pages.data(), 2 * bytes};
        std::ranges::fill(after, std::byte{1});
        fsync(given.descriptor());  // the old reads, if there are any, are over then
        changed += static_cast<std::size_t>(std::ranges::count(after, std::byte{0x55}));
    }
    check::equal(changed, std::size_t{0}, "bytes that came after the end");
}

// io_uring can give up a read of a pipe in which there is nothing.
TEST(a_close_ends_the_threads_even_in_the_middle_of_a_read) {
    int ends[2];
    check::equal(pipe(ends), 0, "pipe");
    if (tensor_ops::stream::uring_requests(1)) {
        const std::size_t before = entries("/proc/self/task");
        {
            Options options;
            options.piece_bytes = 1;  // several reads of each thread
            Stream stream({std::make_shared<File>(ends[0], "a pipe", false)}, {{range(0, 10)}},
                          options);
            check::that(stream.stats().uring, "no io_uring");
            check::that(!stream.take(0ms).has_value(), "something came");
        }
        const auto limit = std::chrono::steady_clock::now() + 60s;
        while (entries("/proc/self/task") > before && std::chrono::steady_clock::now() < limit)
            std::this_thread::yield();
        check::equal(entries("/proc/self/task"), before, "threads");
    }
    close(ends[0]);
    close(ends[1]);
}
#endif
