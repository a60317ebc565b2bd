// One thread's reading: pieces claimed from a schedule, read whole, and put in their places.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "stream/requests.h"
#include "stream/schedule.h"

namespace tensor_ops::stream {

// Pages of our own: given back to the system, not to malloc, so that a read which the kernel could
// not cancel finishes in memory that nobody else has.
class Pages {
 public:
    // Throws std::bad_alloc.
    explicit Pages(std::size_t bytes);
    ~Pages();
    Pages(const Pages&) = delete;
    std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
    std::size_t bytes_;
    void* data_;
};

class Reader {
 public:
    // depth: pieces under way at once, each in a buffer of its own.  The schedule outlives it.
    // Throws std::bad_alloc.
    Reader(Schedule& schedule, std::unique_ptr<Requests> requests, std::size_t depth);
    Reader(const Reader&) = delete;

    // Reads until the schedule is closed; a read that the system does not let go ends when it does,
    // unless wake() helps.
    void run();
    // From any thread.
    void wake() { requests_->wake(); }

    // Of all buffers.
    std::size_t bytes() const { return buffers_.size() * buffer_bytes_; }

 private:
    // A piece under way, and its memory.
    struct Buffer {
        std::byte* memory = nullptr;
        bool busy = false;
        Piece piece;
        bool direct = false;
        std::size_t skew = 0, have = 0;  // bytes before the piece; bytes that were read
    };

    void begin(std::size_t tag);
    void read_more(std::size_t tag);
    bool finished(std::size_t tag, ssize_t result);

    Schedule& schedule_;
    const std::size_t buffer_bytes_;
    const Pages
        memory_;  // before requests_, which end first: nothing may be read into what is gone
    const std::unique_ptr<Requests> requests_;
    std::vector<Buffer> buffers_;  // a buffer's index is the tag of its reads
};

}  // namespace tensor_ops::stream
