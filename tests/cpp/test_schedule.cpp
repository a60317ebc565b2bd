// The stream's schedule by itself, without a thread or a disk: what is claimed, wanted and ready.

#include <atomic>
#include <cerrno>
#include <cstdio>

#include "check.h"
#include "stream/schedule.h"
#include "threads.h"

using namespace std::chrono_literals;
using tensor_ops::stream::Clock;
using tensor_ops::stream::Fault;
using tensor_ops::stream::File;
using tensor_ops::stream::Piece;
using tensor_ops::stream::Range;
using tensor_ops::stream::Schedule;
using tensor_ops::stream::Section;

namespace {

std::shared_ptr<File> file() {
    std::FILE* empty = std::tmpfile();
    auto opened = std::make_shared<File>(fileno(empty), "the file", false);
    std::fclose(empty);
    return opened;
}

// Three sections of three pieces of 100 bytes, for two slots; of a file that nobody reads.
class Three {
 public:
    Schedule schedule{{file()}, sections(), 2, 100, true};

    Piece claim() {
        const auto piece = schedule.claim(false);
        check::that(piece.has_value(), "nothing to claim");
        return piece.value_or(Piece{});
    }
    void read(Piece piece) {
        schedule.was_read(piece, piece.bytes);
        check::that(piece.wanted, "it is not wanted");
        schedule.done(piece, std::nullopt);
    }
    bool nothing_to_claim() { return !schedule.claim(false).has_value(); }
    bool is_ready() { return schedule.take(0ms).has_value(); }

 private:
    static std::vector<Section> sections() {
        std::vector<Section> three;
        for (std::uint64_t i = 0; i < 3; ++i)
            three.push_back({Range{0, 300 * i, 300, 1, {{}, {}}}});
        return three;
    }
};

}  // namespace

TEST(pieces_are_claimed_in_order_as_long_as_a_slot_has_room) {
    Three three;
    for (std::size_t i = 0; i < 6; ++i) {
        const Piece piece = three.claim();
        check::equal(piece.range->offset + piece.first, std::uint64_t{100 * i}, "offset");
        check::equal(piece.slot, i / 3, "slot");
    }
    check::that(three.nothing_to_claim(), "a piece for a slot that is full");
}

TEST(a_section_is_ready_with_the_last_of_its_pieces_in_whatever_order) {
    Three three;
    const Piece first = three.claim(), second = three.claim(), third = three.claim();
    three.read(third);
    three.read(first);
    check::that(!three.is_ready(), "ready without its second piece");
    three.read(second);
    check::that(three.is_ready(), "not ready");
}

TEST(a_slot_has_room_again_when_its_section_is_released) {
    Three three;
    for (int i = 0; i < 6; ++i) three.read(three.claim());
    check::that(three.is_ready() && three.nothing_to_claim(), "room in a slot that is in use");
    three.schedule.release();
    check::equal(three.claim().range->offset, std::uint64_t{600}, "the third section");
}

TEST(what_was_claimed_before_a_rewind_is_not_wanted_and_keeps_its_slot_until_it_is_done) {
    Three three;
    Piece old = three.claim();
    three.schedule.rewind();
    check::that(three.nothing_to_claim(), "two readers in one slot");
    three.schedule.was_read(old, old.bytes);
    check::that(!old.wanted, "a piece of before is wanted");
    three.schedule.done(old, Fault(EIO, "the file", "of before"));
    for (int i = 0; i < 3; ++i) {
        check::that(!three.is_ready(), "ready by a piece of before");
        three.read(three.claim());
    }
    check::that(three.is_ready(), "not ready");
}

TEST(a_fault_comes_when_its_section_is_asked_for_and_goes_with_a_rewind) {
    Three three;
    for (int i = 0; i < 3; ++i) three.read(three.claim());
    Piece broken = three.claim();
    three.schedule.was_read(broken, 0);
    three.schedule.done(broken, Fault(EIO, "the file", "the disk is ill"));
    check::that(three.is_ready(), "the section before the fault");
    three.schedule.release();
    for (int i = 0; i < 2; ++i) {
        try {
            three.schedule.take(0ms);
            check::fail("no fault", std::source_location::current());
        } catch (const Fault& fault) {
            check::equal(fault.error, EIO, "errno");
        }
    }
    three.schedule.rewind();
    for (int i = 0; i < 3; ++i) three.read(three.claim());
    check::that(three.is_ready(), "the first section after a rewind");
}

TEST(after_a_close_nothing_is_claimed_or_wanted) {
    Three three;
    Piece piece = three.claim();
    three.schedule.close();
    check::that(!three.schedule.claim(true).has_value(), "a piece");
    three.schedule.was_read(piece, piece.bytes);
    check::that(!piece.wanted, "a piece that is wanted");
}

TEST(of_several_faults_of_a_section_the_first_is_told) {
    Three three;
    Piece pieces[] = {three.claim(), three.claim(), three.claim()};
    for (int i = 0; i < 3; ++i) {
        three.schedule.was_read(pieces[i], 0);
        three.schedule.done(pieces[i], Fault(i == 0 ? EIO : ENXIO, "the file", "the disk is ill"));
    }
    try {
        three.schedule.take(0ms);
        check::fail("no fault", std::source_location::current());
    } catch (const Fault& fault) {
        check::equal(fault.error, EIO, "errno");
    }
}

TEST(while_a_section_is_held_another_is_refused) {
    Three three;
    for (int i = 0; i < 6; ++i) three.read(three.claim());
    check::that(three.is_ready(), "not ready");
    bool refused = false;
    try {
        three.schedule.take(0ms);
    } catch (const std::logic_error&) {
        refused = true;
    }
    check::that(refused, "a second section at the same time");
    three.schedule.release();
    three.schedule.release();  // which changes nothing
    check::equal(three.schedule.take(0ms).value().section, std::size_t{1}, "section");
}

TEST(a_close_ends_a_wait_for_pieces_that_never_come) {
    Three three;
    std::atomic<bool> ended{false};
    {
        const Sleeper waiting([&] {
            try {
                three.schedule.take(60s);
            } catch (const std::logic_error&) {
                ended = true;
            }
        });
        three.schedule.close();
    }
    check::that(ended.load(), "the wait went on");
}

TEST(a_fault_ends_a_wait_before_the_rest_of_its_section_has_come) {
    Three three;
    Piece broken = three.claim();
    three.claim();
    std::atomic<bool> told{false};
    {
        const Sleeper waiting([&] {
            try {
                three.schedule.take(60s);
            } catch (const Fault&) {
                told = true;
            }
        });
        three.schedule.was_read(broken, 0);
        three.schedule.done(broken, Fault(EIO, "the file", "the disk is ill"));
    }
    check::that(told.load(), "the wait went on");
}

TEST(a_reader_that_waits_for_a_slot_goes_on_once_the_pieces_of_before_are_done) {
    Three three;
    Piece old = three.claim();
    three.schedule.rewind();
    std::atomic<bool> ended{false}, found{false};
    const Sleeper waiting([&] {
        found = three.schedule.claim(true).has_value();
        ended = true;
    });
    three.schedule.was_read(old, old.bytes);
    three.schedule.done(old, std::nullopt);
    const auto limit = Clock::now() + 60s;
    while (!ended && Clock::now() < limit) std::this_thread::yield();
    three.schedule.close();  // which ends the wait in any case
    check::that(ended && found, "the wait went on");
}

TEST(a_section_that_is_read_once_lets_go_of_its_places_when_it_is_released) {
    const auto place = std::make_shared<int>();
    Schedule schedule({file()}, {}, 1, 100, false);
    schedule.push({Range{0, 0, 100, 1, {[place](std::span<const std::byte>, std::size_t) {}}}});
    Piece piece = schedule.claim(false).value();
    schedule.was_read(piece, piece.bytes);
    schedule.done(piece, std::nullopt);
    check::that(schedule.take(0ms).has_value(), "not ready");
    check::equal(place.use_count(), 2L, "uses while it is held");
    schedule.release();
    check::equal(place.use_count(), 1L, "uses afterwards");
}

// Two pieces that are read at the same time: each moment lies between two that the test took.
TEST(every_moment_counts_as_reading_or_as_having_nothing_to_read) {
    const auto now = [] { return tensor_ops::stream::seconds_since(Clock::time_point{}); };
    const auto pause = [&] {
        for (const double end = now() + 0.002; now() < end;) std::this_thread::yield();
    };
    const double before = now();
    Three three;
    const double made = now();
    pause();
    const double begins = now();
    Piece first = three.claim();
    const double begun = now();
    pause();
    Piece second = three.claim();
    pause();
    const double under_way = three.schedule.counts().disk_seconds;
    check::that(under_way >= 0.004 && under_way <= now() - begins, "seconds of reading so far");
    three.schedule.was_read(first, 0);
    pause();
    const double ends = now();
    three.schedule.was_read(second, 0);
    const double ended = now();
    pause();
    const double asks = now();
    const tensor_ops::stream::Counts counts = three.schedule.counts();
    const double asked = now();
    check::that(counts.disk_seconds >= ends - begun && counts.disk_seconds <= ended - begins,
                "seconds of reading: " + std::to_string(counts.disk_seconds));
    const double least = begins - made + asks - ended, most = begun - before + asked - ends;
    check::that(counts.waited_for_compute >= least && counts.waited_for_compute <= most,
                "seconds without: " + std::to_string(counts.waited_for_compute));
}
