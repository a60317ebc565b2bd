// Byte ranges of files, read ahead of need and handed over in order.
//
// Ranges come in sections, which are needed one after the other, and from the first again after the
// last.  A few sections, the slots, are under way or ready at once: threads read them, piece by
// piece and several pieces at a time, and give each piece to its range's function, which puts it
// where the slot has its room (packs it, say).  The consumer takes the sections in order, has each
// until it releases it, and only waits for what is not there yet.
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
    std::size_t threads = 2;             // that read, and call what takes the pieces
    std::size_t depth = 10;              // reads under way, of all threads together
    std::size_t piece_bytes = 1u << 20;  // of a read, where a range's unit is not larger
    bool endless = true;                 // the first section follows the last
    bool uring = true;                   // where the kernel has it; else a thread for each read
};

struct Stats : Counts {
    bool uring = false;
    bool direct = false;  // every file past the page cache
    std::size_t depth = 0;
    std::size_t buffer_bytes = 0;  // for reads under way
};

class Schedule;

class Stream {
 public:
    // sections: may be none where more are pushed.
    // make: for tests; null for what `options` say.  Throws std::invalid_argument for options or
    // ranges that make no sense, std::bad_alloc, std::system_error where no thread starts.
    Stream(std::vector<std::shared_ptr<File>> files, std::vector<Section> sections, Options options,
           MakeRequests make = nullptr);
    ~Stream();
    Stream(const Stream&) = delete;

    // The next section; nothing when it is not there after that time.  Throws Fault when it could
    // not be read, or a file of it has changed; after that only rewind() helps.
    // std::logic_error while another is held, after the last and after close().
    std::optional<Taken> take(std::chrono::milliseconds at_most);
    // The section that was taken is no longer in use.
    void release();
    // The next section is the first; what was read ahead, and what was wrong, is forgotten.
    // std::logic_error for a stream that is not endless.
    void rewind();
    // Another section after the last, of a stream that is not endless.  Throws
    // std::invalid_argument for ranges that make no sense, or pieces larger than those at first.
    void push(Section section);
    // Ends all reading.  Threads that the system does not let go, on a disk that stalls, end when
    // it does; their memory is theirs until then.
    void close();

    Stats stats() const;

 private:
    struct State;
    std::shared_ptr<State> state_;
    void start_threads();
    // std::logic_error in a child of fork().
    Schedule& schedule() const;
};

}  // namespace tensor_ops::stream
