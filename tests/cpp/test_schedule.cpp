// The stream's schedule by itself, without a thread or a disk: what is claimed, wanted and ready.

#include <cerrno>
#include <cstdio>

#include "check.h"
#include "stream/schedule.h"

using namespace std::chrono_literals;
using tensor_ops::stream::Fault;
using tensor_ops::stream::File;
using tensor_ops::stream::Piece;
using tensor_ops::stream::Range;
using tensor_ops::stream::Schedule;
using tensor_ops::stream::Section;

namespace {

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
    static std::shared_ptr<File> file() {
        std::FILE* empty = std::tmpfile();
        auto opened = std::make_shared<File>(fileno(empty), "the file", false);
        std::fclose(empty);
        return opened;
    }
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
    three.schedule.done(old, std::nullopt);
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
