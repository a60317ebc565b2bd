// The input and output of a stream: the sections to read, and the faults and statistics of reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace tensor_ops::stream {

// Puts a piece of a range, which begins at the range's byte `first`, in its place.  It must not
// throw.  Several threads call it at once, for pieces that do not overlap.
using Take = std::function<void(std::span<const std::byte> piece, std::size_t first)>;

struct Range {
    std::size_t file;  // index
    std::uint64_t offset;
    std::size_t bytes;
    std::size_t unit = 1;     // pieces begin at multiples of it
    std::vector<Take> takes;  // one for each slot
};

using Section = std::vector<Range>;

// A section that was handed over.
struct Taken {
    std::size_t section, slot;  // indices
};

// A failed read: which file, where, why.
struct Fault : std::runtime_error {
    Fault(int error_, std::string file_, const std::string& what)
        : std::runtime_error(what), error(error_), file(std::move(file_)) {}
    int error;  // errno
    std::string file;
};

// Totals so far.
struct Counts {
    std::uint64_t bytes_read = 0;   // from the files; direct reads count whole sectors
    std::uint64_t bytes_taken = 0;  // of sections that were handed over
    double disk_seconds = 0;        // in which at least one read was under way
    double waited_for_disk = 0;     // seconds that the consumer waited
    double waited_for_compute = 0;  // seconds in which nothing was read, as all slots were full
    double take_seconds = 0;        // in ranges' functions, summed over the threads
};

}  // namespace tensor_ops::stream
