// The work of one reading thread: it claims pieces from a schedule, reads them whole, and has them
// put in their places.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "stream/requests.h"
#include "stream/schedule.h"

namespace tensor_ops::stream {

// Mapped pages, which go back to the system.
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
    // depth: pieces under way at once, each in a buffer of its own.  The schedule must outlive the
    // reader.
    // Throws std::bad_alloc.
    Reader(Schedule& schedule, std::unique_ptr<Requests> requests, std::size_t depth);
    Reader(const Reader&) = delete;

    // Reads until the schedule is closed and no read is under way: a read that hangs in the system
    // goes on writing to its buffer.
    void run();
    // Asks the system to give up the reads under way.  Any thread may call it, after
    // Schedule::close().
    void cancel() { requests_->cancel(); }

    // Bytes of all buffers.
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
    const Pages memory_;
    const std::unique_ptr<Requests> requests_;
    std::vector<Buffer> buffers_;  // a buffer's index is the tag of its reads
};

}  // namespace tensor_ops::stream
