// Byte ranges of files, read ahead of need and handed over in order.
//
// Ranges come in sections, which are needed one after the other; after the last section the first
// follows again if the stream is endless.  There are a few slots, and as many sections are under
// way or ready at once.  Threads read the sections piece by piece, several pieces at a time, and
// pass each piece to its range's function, which puts it into the slot's memory (and packs it, for
// example).  The consumer takes the sections in order, holds each until it releases it, and waits
// only for sections that are not ready.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "stream/file.h"
#include "stream/requests.h"
#include "stream/section.h"

namespace tensor_ops::stream {

struct Options {
    std::size_t slots = 2;
    std::size_t threads = 2;             // that read, and call the ranges' functions
    std::size_t depth = 10;              // reads under way, of all threads together
    std::size_t piece_bytes = 1u << 20;  // of a read, unless a range's unit is larger
    bool endless = true;                 // the first section follows the last
    bool uring = true;                   // if the kernel has it; else a thread for each read
};

struct Stats : Counts {
    bool uring = false;
    bool direct = false;  // every file is read past the page cache
    std::size_t depth = 0;
    std::size_t buffer_bytes = 0;  // for reads under way
};

class Schedule;

class Stream {
 public:
    // sections: may be empty if the stream is not endless and sections are pushed later.
    // make: for tests; null: as `options` say.  Throws std::invalid_argument for options or ranges
    // that make no sense, std::bad_alloc, and std::system_error if a thread cannot start.
    Stream(std::vector<std::shared_ptr<File>> files, std::vector<Section> sections, Options options,
           MakeRequests make = nullptr);
    ~Stream();
    Stream(const Stream&) = delete;

    // The next section, or nothing if it is not ready after at_most.  Throws Fault if it could not
    // be read or one of its files has changed; after that only rewind() helps.  Throws
    // std::logic_error while another section is held, after the last one and after close().
    std::optional<Taken> take(std::chrono::milliseconds at_most);
    // Ends the use of the section that was taken.
    void release();
    // Starts again from the first section, and forgets the sections read ahead and the faults.
    // Throws std::logic_error for a stream that is not endless.
    void rewind();
    // Adds a section after the last, to a stream that is not endless.  Throws std::invalid_argument
    // for ranges that make no sense, or pieces larger than the largest at construction.
    void push(Section section);
    // Ends all reading, and returns when no range's function runs any more, nor ever will.  A
    // thread whose read hangs in the system, on a disk that stalls, ends when the read does, and
    // keeps its memory until then.
    void close();

    Stats stats() const;

 private:
    struct State;
    struct Threads;
    std::shared_ptr<State> state_;
    std::shared_ptr<Threads> threads_;
    explicit Stream(std::shared_ptr<State> state);
    static std::shared_ptr<State> made(std::vector<std::shared_ptr<File>> files,
                                       std::vector<Section> sections, const Options& options,
                                       MakeRequests make);
    void start_threads();
    // Throws std::logic_error in a child of fork().
    Schedule& schedule() const;
};

}  // namespace tensor_ops::stream
