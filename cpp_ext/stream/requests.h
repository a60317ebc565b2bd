// Reads in flight: several at once through io_uring, or one by pread.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace tensor_ops::stream {

struct Read {
    int descriptor;
    std::byte* memory;
    std::size_t bytes;
    std::uint64_t offset;
};

// Bytes that were read, or minus an errno.
ssize_t read_now(const Read& read);

struct Outcome {
    std::size_t tag;
    ssize_t result;  // bytes that were read, or minus an errno
};

// For one thread, except cancel().
class Requests {
 public:
    virtual ~Requests() = default;
    // Begins a read.  tag: below `depth`, and of no read that is under way.
    virtual void start(std::size_t tag, const Read& read) = 0;
    // Waits until one of the started reads has ended: until then, its memory is written to.
    virtual Outcome finish() = 0;
    // Asks the system to give up the reads: those that it gives up, and all that are started from
    // now on, end with ECANCELED.  Any thread may call it.
    virtual void cancel() = 0;
};

using MakeRequests = std::function<std::unique_ptr<Requests>(std::size_t depth)>;

// Null if the kernel has no io_uring, or does not let this process use it.
std::unique_ptr<Requests> uring_requests(std::size_t depth);
// Each read happens inside finish(), one after the other, whatever the depth.
std::unique_ptr<Requests> blocking_requests(std::size_t depth);

}  // namespace tensor_ops::stream
