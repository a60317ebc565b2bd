// The state that readers and the consumer share: which piece is read next, which section is ready.
//
// Sections take the slots in turn; a section enters its slot once the section there is released.
// Readers claim the pieces of a section in order, and report each when it is in its place; with the
// last of them the section is ready.  A rewind begins a new era: pieces of an older era may still
// be on their way, and are discarded.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "stream/file.h"
#include "stream/section.h"

namespace tensor_ops::stream {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// A part of a range that is read at once, and the slot that it goes to.
struct Piece {
    const Range* range = nullptr;
    File* file = nullptr;
    std::size_t first = 0, bytes = 0;  // of the range
    std::size_t slot = 0;
    std::uint64_t era = 0;
    bool wanted = false;  // when it was read; it is discarded otherwise
};

// For readers on any threads, and one consumer.
class Schedule {
 public:
    // Throws std::invalid_argument for ranges that make no sense.
    Schedule(std::vector<std::shared_ptr<File>> files, std::vector<Section> sections,
             std::size_t slots, std::size_t piece_bytes, bool endless);

    // For readers: the next piece that a slot has room for, which counts as being read from now on.
    // Nothing after close(), or if there is no such piece yet and wait is false.
    std::optional<Piece> claim(bool wait);
    // The read of a piece has ended, in success or failure, with so many bytes.  Says in the piece
    // whether it is still wanted.
    void was_read(Piece& piece, std::uint64_t bytes);
    // After was_read(): the piece is in its place, which took take_seconds, or there is a fault.
    void done(const Piece& piece, std::optional<Fault> fault, double take_seconds = 0);

    // For the consumer: as in Stream.
    std::optional<Taken> take(std::chrono::milliseconds at_most);
    void release();
    void rewind();
    void push(Section section);
    // Waits until no piece is being put in its place.
    void close();

    // Bytes of the largest piece at construction; no piece that is pushed later may be larger.
    std::size_t largest_piece() const { return largest_piece_; }
    Counts counts() const;

 private:
    struct Planned {
        Section ranges;
        std::vector<Piece> pieces;
    };
    struct Slot {
        std::uint64_t sequence = UINT64_MAX;  // of the section in it, counted from the last rewind
        std::size_t left = 0;                 // pieces of it that are not in their place yet
        std::size_t in_flight = 0;            // pieces that readers have, of older eras too
        std::optional<Fault> fault;
    };

    Planned planned(Section section) const;

    const std::vector<std::shared_ptr<File>> files_;
    const std::size_t piece_bytes_;
    const bool endless_;
    std::size_t largest_piece_ = 0;

    mutable std::mutex mutex_;
    std::condition_variable work_, progress_, settled_;
    std::deque<Planned> sections_;  // a deque, as pieces point into its elements
    std::vector<Slot> slots_;
    bool closed_ = false, held_ = false;
    std::uint64_t era_ = 0;                     // rewinds
    std::uint64_t filling_ = 0, next_ = 0;      // sequence numbers: being read, and to be taken
    std::size_t next_piece_ = 0;                // of the section that is being read
    std::size_t reading_ = 0;                   // pieces that were claimed and are not read yet
    std::size_t settling_ = 0;                  // wanted pieces between was_read() and done()
    Clock::time_point changed_ = Clock::now();  // when reading_ last began or ceased to be 0
    Counts counts_;
};

}  // namespace tensor_ops::stream
