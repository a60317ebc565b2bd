// The stream: every byte in its place and in order, whatever the disk does.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>

#include "check.h"
#include "stream/stream.h"
#include "temporary_file.h"

using namespace std::chrono_literals;
using tensor_ops::stream::Fault;
using tensor_ops::stream::File;
using tensor_ops::stream::MakeRequests;
using tensor_ops::stream::Options;
using tensor_ops::stream::Outcome;
using tensor_ops::stream::Range;
using tensor_ops::stream::Read;
using tensor_ops::stream::Requests;
using tensor_ops::stream::Section;
using tensor_ops::stream::Stream;
using tensor_ops::stream::Taken;

namespace {

std::byte content(std::uint64_t offset) {
    return static_cast<std::byte>(offset * 2654435761u >> 13 & 0xff);
}

// A file with content.
struct TestFile : TemporaryFile {
    explicit TestFile(std::size_t bytes) : TemporaryFile(static_cast<off_t>(bytes)) {
        std::vector<std::byte> data(bytes);
        for (std::size_t i = 0; i < bytes; ++i) data[i] = content(i);
        check::equal(pwrite(descriptor(), data.data(), bytes, 0), static_cast<ssize_t>(bytes),
                     "bytes");
    }
};

// Ranges that are copied into memory of their own, and what was seen of them.
struct Copies {
    struct Copy {
        std::uint64_t offset;
        std::vector<std::vector<std::byte>> slots;
    };
    std::deque<Copy> copies;                 // in the order of range()
    std::atomic<int> pieces{0}, crooked{0};  // pieces that do not begin at a multiple of the unit

    Range range(std::uint64_t offset, std::size_t bytes, std::size_t unit = 1,
                std::size_t slots = 2) {
        Copy& copy = copies.emplace_back();
        copy.offset = offset;
        copy.slots.assign(slots, std::vector<std::byte>(bytes));
        Range range{0, offset, bytes, unit, {}};
        for (std::size_t s = 0; s < slots; ++s)
            range.takes.push_back([this, unit, &to = copy.slots[s]](
                                      std::span<const std::byte> piece, std::size_t first) {
                pieces += 1;
                crooked += first % unit != 0;
                std::memcpy(to.data() + first, piece.data(), piece.size());
            });
        return range;
    }
    bool is_right(std::size_t index, std::size_t slot) const {
        const Copy& copy = copies[index];
        for (std::size_t i = 0; i < copy.slots[slot].size(); ++i)
            if (copy.slots[slot][i] != content(copy.offset + i)) return false;
        return true;
    }
    void forget(std::size_t index, std::size_t slot) {
        auto& bytes = copies[index].slots[slot];
        std::fill(bytes.begin(), bytes.end(), std::byte{0});
    }
};

// A section to itself of each of n ranges of `bytes`, one after the other in the file.
std::vector<Section> sections_of(Copies& copies, std::size_t n, std::size_t bytes,
                                 std::size_t unit = 1) {
    std::vector<Section> sections;
    for (std::size_t i = 0; i < n; ++i) sections.push_back({copies.range(i * bytes, bytes, unit)});
    return sections;
}

// The disk as a test wants it: `result` says what becomes of a read before it is really done.
struct FakeDisk {
    std::function<std::optional<ssize_t>(const Read&)> result = [](const Read&) {
        return std::nullopt;
    };
    std::mutex mutex;

    MakeRequests make() {
        return [this](std::size_t) { return std::make_unique<FakeRequests>(*this); };
    }

 private:
    class FakeRequests : public Requests {
     public:
        explicit FakeRequests(FakeDisk& disk) : disk_(disk) {}
        void start(std::size_t tag, const Read& read) override { waiting_.push_back({tag, read}); }
        Outcome finish() override {
            const auto [tag, read] = waiting_.front();
            waiting_.pop_front();
            const std::lock_guard lock(disk_.mutex);
            if (const auto given = disk_.result(read)) return Outcome{tag, *given};
            return Outcome{tag, pread(read.descriptor, read.memory, read.bytes,
                                      static_cast<off_t>(read.offset))};
        }
        void cancel() override {}

     private:
        FakeDisk& disk_;
        std::deque<std::pair<std::size_t, Read>> waiting_;
    };
};

Options small_pieces(bool uring = true) {
    Options options;
    options.piece_bytes = 8192;
    options.uring = uring;
    return options;
}

constexpr auto long_enough = 60s;

Taken take(Stream& stream) {
    const auto taken = stream.take(long_enough);
    check::that(taken.has_value(), "nothing came");
    return taken.value_or(Taken{});
}

// take() throws a Fault whose message contains `words`.
void faulty(Stream& stream, int error, std::string_view words,
            const std::source_location& where = std::source_location::current()) {
    try {
        stream.take(long_enough);
    } catch (const Fault& fault) {
        check::equal(fault.error, error, "errno", where);
        check::equal(fault.file, std::string("the file"), "the file's name", where);
        check::that(std::string_view(fault.what()).find(words) != std::string_view::npos,
                    "the message is \"" + std::string(fault.what()) + '"', where);
        return;
    }
    check::fail("no fault", where);
}

}  // namespace

TEST(sections_come_in_order_and_again_from_the_first_with_their_bytes) {
    const TestFile file(300'000);
    for (const bool uring : {true, false}) {
        for (const bool direct : {true, false}) {
            Copies copies;
            const std::vector<Section> sections = {
                {copies.range(0, 100'001), copies.range(250'003, 49'997)},
                {copies.range(100'001, 1)},
                {copies.range(100'002, 150'001)}};
            const std::vector<std::size_t> ranges[] = {{0, 1}, {2}, {3}};  // of each section
            Stream stream({file.opened(direct)}, sections, small_pieces(uring));
            for (std::size_t i = 0; i < 7; ++i) {
                const auto [section, slot] = take(stream);
                check::equal(section, i % 3, "section");
                check::equal(slot, i % 2, "slot");
                for (const std::size_t range : ranges[section]) {
                    check::that(copies.is_right(range, slot), "bytes of a range");
                    copies.forget(range, slot);
                }
                stream.release();
            }
        }
    }
}

TEST(after_a_rewind_the_first_section_comes_next) {
    const TestFile file(80'000);
    Copies copies;
    Stream stream({file.opened(true)}, sections_of(copies, 8, 10'000), small_pieces());
    for (std::size_t round = 0; round < 20; ++round) {
        for (std::size_t i = 0; i < round % 5; ++i) {
            take(stream);
            if (i + 1 < round % 5 || round % 2) stream.release();
        }
        stream.rewind();
        const auto [section, slot] = take(stream);
        check::equal(section, std::size_t{0}, "section");
        check::that(copies.is_right(0, slot), "bytes");
        stream.release();
        stream.rewind();
    }
}

TEST(a_stream_that_is_not_endless_ends_after_its_last_section) {
    const TestFile file(10'000);
    Copies copies;
    Options options = small_pieces();
    options.endless = false;
    Stream stream({file.opened(true)}, sections_of(copies, 2, 5'000), options);
    for (std::size_t i = 0; i < 2; ++i) {
        check::equal(take(stream).section, i, "section");
        check::that(copies.is_right(i, i), "bytes");
        stream.release();
    }
    try {
        stream.take(long_enough);
        check::that(false, "a section after the last");
    } catch (const std::logic_error&) {
    }
    try {
        stream.rewind();
        check::that(false, "the first section again");
    } catch (const std::logic_error&) {
    }
}

TEST(sections_may_be_added_to_a_stream_that_is_not_endless) {
    const TestFile file(100'000);
    Copies copies;
    Options options = small_pieces();
    options.endless = false;
    options.slots = 1;
    Stream stream({file.opened(true)}, {}, options);
    for (std::size_t i = 0; i < 20; ++i) {
        const std::uint64_t offset = i * 7919 % 50'000;
        stream.push({copies.range(offset, 20'000, 1, 1), copies.range(offset + 30'000, 5, 1, 1)});
        check::equal(take(stream).section, i, "section");
        check::that(copies.is_right(2 * i, 0) && copies.is_right(2 * i + 1, 0), "bytes");
        stream.release();
    }
    check::refused([&] { stream.push({copies.range(0, 50'000, 50'000, 1)}); },
                   "a range's unit is larger");
    check::refused([&] { stream.push({}); }, "a section has no bytes");
}

TEST(pieces_are_whole_units_also_where_a_unit_is_larger_than_a_read) {
    const TestFile file(100'000);
    for (const std::size_t unit : {7u, 4'096u, 30'001u}) {
        Copies copies;
        Stream stream({file.opened(true)}, sections_of(copies, 1, 100'000, unit), small_pieces());
        const auto [section, slot] = take(stream);
        check::that(copies.is_right(0, slot), "bytes");
        check::equal(copies.crooked.load(), 0, "pieces that begin within a unit");
    }
}

TEST(no_more_is_read_ahead_than_there_are_slots) {
    const TestFile file(80'000);
    FakeDisk disk;
    std::uint64_t furthest = 0;
    disk.result = [&](const Read& read) -> std::optional<ssize_t> {
        furthest = std::max(furthest, read.offset + read.bytes);
        return std::nullopt;
    };
    Copies copies;
    Stream stream({file.opened(false)}, sections_of(copies, 10, 8'000), small_pieces(),
                  disk.make());
    for (std::size_t i = 0; i < 10; ++i) {
        take(stream);
        const std::lock_guard lock(disk.mutex);
        if (i < 8)
            check::that(furthest <= (i + 2) * 8'000, "read up to " + std::to_string(furthest));
        stream.release();
    }
}

TEST(a_read_that_ends_early_is_continued) {
    const TestFile file(200'000);
    FakeDisk disk;
    disk.result = [](const Read& read) -> std::optional<ssize_t> {
        if (read.bytes <= 4096) return std::nullopt;
        return pread(read.descriptor, read.memory, 4096, static_cast<off_t>(read.offset));
    };
    for (const bool direct : {true, false}) {
        Copies copies;
        Stream stream({file.opened(direct)}, sections_of(copies, 2, 99'999), small_pieces(),
                      disk.make());
        for (std::size_t i = 0; i < 2; ++i) {
            check::that(copies.is_right(i, take(stream).slot), "bytes");
            stream.release();
        }
    }
}

TEST(a_read_that_a_signal_interrupts_is_repeated) {
    const TestFile file(50'000);
    FakeDisk disk;
    int calls = 0;
    disk.result = [&](const Read&) -> std::optional<ssize_t> {
        return ++calls % 2 ? std::optional<ssize_t>(-EINTR) : std::nullopt;
    };
    Copies copies;
    Stream stream({file.opened(true)}, sections_of(copies, 1, 50'000), small_pieces(), disk.make());
    check::that(copies.is_right(0, take(stream).slot), "bytes");
}

TEST(a_file_system_that_refuses_direct_reads_is_read_through_the_page_cache) {
    const TestFile file(50'000);
    FakeDisk disk;
    disk.result = [](const Read& read) -> std::optional<ssize_t> {
        const bool aligned = read.offset % 4096 == 0 && read.bytes % 4096 == 0;
        return aligned ? std::optional<ssize_t>(-EINVAL) : std::nullopt;
    };
    Copies copies;
    const std::vector<Section> sections = {{copies.range(1, 49'999)}};
    Options options = small_pieces();
    options.piece_bytes = 8'191;  // no buffered read of it looks like a direct one
    Stream stream({file.opened(true)}, sections, options, disk.make());
    check::that(copies.is_right(0, take(stream).slot), "bytes");
    check::that(!stream.stats().direct, "the statistics call it direct");
}

TEST(a_direct_read_that_ends_within_a_sector_is_at_the_end_of_the_file) {
    const TestFile file(50'000);
    FakeDisk disk;
    disk.result = [](const Read& read) -> std::optional<ssize_t> {
        return read.offset % 4096 == 0 ? std::nullopt : std::optional<ssize_t>(-EINVAL);
    };
    const auto opened = file.opened(true);
    if (!opened->direct()) return;  // nor are there any such reads
    Copies copies;
    Stream stream({opened}, {{copies.range(49'000, 2'000)}}, small_pieces(), disk.make());
    faulty(stream, EIO, "the file ends at 50000");
    check::that(stream.stats().direct, "read through the page cache from now on");
}

// ---- what goes wrong
// -----------------------------------------------------------------------------

TEST(an_input_output_error_comes_in_its_place_with_file_and_offset) {
    const TestFile file(80'000);
    FakeDisk disk;
    bool broken = true;
    disk.result = [&](const Read& read) -> std::optional<ssize_t> {
        const bool hit = read.offset <= 45'000 && 45'000 < read.offset + read.bytes;
        return broken && hit ? std::optional<ssize_t>(-EIO) : std::nullopt;
    };
    Copies copies;
    Stream stream({file.opened(false)}, sections_of(copies, 8, 10'000), small_pieces(),
                  disk.make());
    for (std::size_t i = 0; i < 4; ++i) {
        check::that(copies.is_right(i, take(stream).slot), "a section before the fault");
        stream.release();
    }
    faulty(stream, EIO, "8192 bytes at offset 40000");
    faulty(stream, EIO, "8192 bytes at offset 40000");
    FakeDisk unwilling;  // also where nothing is read past the page cache
    unwilling.result = [](const Read&) { return -EINVAL; };
    Stream buffered({file.opened(false)}, sections_of(copies, 1, 10'000), small_pieces(),
                    unwilling.make());
    faulty(buffered, EINVAL, "8192 bytes at offset 0");

    {
        const std::lock_guard lock(disk.mutex);
        broken = false;
    }
    stream.rewind();
    for (std::size_t i = 0; i < 8; ++i) {
        check::that(copies.is_right(i, take(stream).slot), "bytes once the disk is well again");
        stream.release();
    }
}

TEST(a_file_that_is_shorter_than_was_said_is_called_truncated) {
    const TestFile file(50'000);
    for (const bool direct : {true, false}) {
        for (const bool uring : {true, false}) {
            Copies copies;
            Options options = small_pieces(uring);
            options.endless = false;
            Stream stream({file.opened(direct)}, {{copies.range(45'000, 8'000)}}, options);
            const bool was_direct = stream.stats().direct;
            faulty(stream, EIO, "the file ends at 50000");
            check::equal(stream.stats().direct, was_direct, "direct");
            if (!direct) check::equal(stream.stats().bytes_read, std::uint64_t{5'000}, "bytes");
        }
    }
}

TEST(a_file_that_was_written_to_is_refused) {
    const TestFile file(50'000);
    Copies copies;
    Stream stream({file.opened(true)}, sections_of(copies, 5, 10'000), small_pieces());
    take(stream);
    stream.release();
    check::equal(pwrite(file.descriptor(), "x", 1, 60'000), ssize_t{1}, "bytes written");
    faulty(stream, ESTALE, "changed while it was read");
}

TEST(a_file_that_was_deleted_is_read_on) {
    const TestFile file(50'000);  // it is deleted from its first moment on
    Copies copies;
    Stream stream({file.opened(true)}, sections_of(copies, 1, 50'000), small_pieces());
    check::that(copies.is_right(0, take(stream).slot), "bytes");
}

TEST(a_disk_that_stalls_holds_nobody_up) {
    const TestFile file(50'000);
    struct Stall {  // outlives the test: the stream's thread is in it
        std::mutex mutex;
        std::condition_variable over;
        bool stalls = true;
    };
    const auto stall = std::make_shared<Stall>();
    struct StallingRequests : Requests {
        explicit StallingRequests(std::shared_ptr<Stall> stall_) : stall(std::move(stall_)) {}
        void start(std::size_t tag_, const Read& read_) override { tag = tag_, read = read_; }
        Outcome finish() override {
            std::unique_lock lock(stall->mutex);
            stall->over.wait(lock, [&] { return !stall->stalls; });
            return Outcome{tag, pread(read.descriptor, read.memory, read.bytes,
                                      static_cast<off_t>(read.offset))};
        }
        void cancel() override {}
        std::shared_ptr<Stall> stall;
        std::size_t tag = 0;
        Read read{};
    };
    const MakeRequests make = [&](std::size_t) {
        return std::make_unique<StallingRequests>(stall);
    };
    Options options = small_pieces();
    options.threads = options.depth = 1;
    Copies copies;
    const auto copies_kept = std::make_shared<Copies>();
    {
        Stream stream({file.opened(true)}, {{copies_kept->range(0, 50'000)}}, options, make);
        check::that(!stream.take(1ms).has_value(), "something came");
        check::that(!stream.take(1ms).has_value(), "something came");
        check::that(stream.stats().waited_for_disk > 0.001, "the wait was not counted");
    }  // closed while the thread is stuck: must come back
    check::equal(copies_kept->pieces.load(), 0, "pieces");

    Stream stream({file.opened(true)}, {{copies.range(0, 50'000)}}, options, make);
    check::that(!stream.take(1ms).has_value(), "something came");
    {
        const std::lock_guard lock(stall->mutex);
        stall->stalls = false;
    }
    stall->over.notify_all();
    check::that(copies.is_right(0, take(stream).slot), "bytes after the stall");
}

TEST(ranges_and_options_that_make_no_sense_are_refused) {
    const TestFile file(10);
    Copies copies;
    const auto open = [&](std::vector<Section> sections, Options options = {}) {
        check::refused([&] { Stream({file.opened(true)}, std::move(sections), options); },
                       "Stream");
    };
    open({});
    open({{}});
    open({{copies.range(0, 0)}});
    open({{copies.range(0, 10, 1, 3)}});  // three places, two slots
    Range elsewhere = copies.range(0, 10);
    elsewhere.file = 1;
    open({{elsewhere}});
    Options none;
    none.depth = 0;
    open({{copies.range(0, 10)}}, none);
}

TEST(what_was_waited_for_and_read_is_counted) {
    const TestFile file(81'920);
    Copies copies;
    Stream stream({file.opened(true)}, sections_of(copies, 10, 8'192), small_pieces());
    for (std::size_t i = 0; i < 10; ++i) {
        take(stream);
        stream.release();
    }
    const auto stats = stream.stats();
    check::equal(stats.bytes_taken, std::uint64_t{81'920}, "bytes handed over");
    check::that(stats.bytes_read >= 81'920 && stats.bytes_read <= 81'920 + 2 * 8'192,
                "bytes read: " + std::to_string(stats.bytes_read));
    check::that(stats.disk_seconds > 0, "seconds of reading");
    const Stream half({file.opened(false), file.opened(true)}, {{copies.range(0, 10)}}, {});
    check::that(!half.stats().direct, "one of two files is read past the page cache");
    check::that(stats.take_seconds > 0, "seconds of putting them in their places");
}
