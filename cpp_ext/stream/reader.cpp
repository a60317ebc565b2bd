#include "stream/reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

namespace tensor_ops::stream {
namespace {

constexpr std::size_t longest_read = 1u << 30;  // Linux reads less than 2 GiB at a time

std::size_t round_up(std::size_t n) {
    return (n + direct_alignment - 1) / direct_alignment * direct_alignment;
}

std::uint64_t offset_of(const Piece& piece) { return piece.range->offset + piece.first; }

// error: errno, or 0 where the file ended before the piece.
Fault fault_of(const Piece& piece, int error) {
    const File& file = *piece.file;
    const std::string where =
        std::to_string(piece.bytes) + " bytes at offset " + std::to_string(offset_of(piece));
    if (error == 0)
        return Fault(EIO, file.name(),
                     "the file ends at " + std::to_string(file.size()) + ", before the end of " +
                         where + ": it is truncated");
    return Fault(error, file.name(), std::string(std::strerror(error)) + ", reading " + where);
}

}  // namespace

Pages::Pages(std::size_t bytes)
    : bytes_(bytes),
      data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (data_ == MAP_FAILED) throw std::bad_alloc();
}

Pages::~Pages() { munmap(data_, bytes_); }

// A direct read begins and ends at whole sectors, so it may begin before the piece and end after
// it.
Reader::Reader(Schedule& schedule, std::unique_ptr<Requests> requests, std::size_t depth)
    : schedule_(schedule),
      buffer_bytes_(round_up(schedule.largest_piece()) + direct_alignment),
      memory_(depth * buffer_bytes_),
      requests_(std::move(requests)),
      buffers_(depth) {
    for (std::size_t i = 0; i < depth; ++i) buffers_[i].memory = memory_.data() + i * buffer_bytes_;
}

void Reader::run() {
    std::size_t under_way = 0;
    for (;;) {
        for (std::size_t tag = 0; tag < buffers_.size(); ++tag) {
            if (buffers_[tag].busy) continue;
            const std::optional<Piece> piece = schedule_.claim(under_way == 0);
            if (!piece) break;
            buffers_[tag].busy = true;
            buffers_[tag].piece = *piece;
            ++under_way;
            begin(tag);
        }
        if (under_way == 0) return;  // closed
        const auto [tag, result] = requests_->finish();
        if (finished(tag, result)) {
            buffers_[tag].busy = false;
            --under_way;
        }
    }
}

void Reader::begin(std::size_t tag) {
    Buffer& buffer = buffers_[tag];
    buffer.direct = buffer.piece.file->direct();
    buffer.skew = buffer.direct ? offset_of(buffer.piece) % direct_alignment : 0;
    buffer.have = 0;
    read_more(tag);
}

void Reader::read_more(std::size_t tag) {
    Buffer& buffer = buffers_[tag];
    const std::uint64_t start = offset_of(buffer.piece) - buffer.skew;
    const std::size_t wanted = buffer.skew + buffer.piece.bytes;
    const std::size_t end = buffer.direct ? round_up(wanted) : wanted;
    requests_->start(tag, {buffer.piece.file->descriptor(), buffer.memory + buffer.have,
                           std::min(end - buffer.have, longest_read), start + buffer.have});
}

// Handles the result of a read.  Returns whether the piece is done: put in its place, or reported
// as a fault.
bool Reader::finished(std::size_t tag, ssize_t result) {
    Buffer& buffer = buffers_[tag];
    Piece& piece = buffer.piece;
    if (result == -EINTR || result == -EAGAIN) {
        read_more(tag);
        return false;
    }
    if (result == -EINVAL && buffer.direct) {
        piece.file->refuse_direct();
        begin(tag);
        return false;
    }
    if (result > 0) buffer.have += static_cast<std::size_t>(result);
    const bool is_whole = buffer.have >= buffer.skew + piece.bytes;
    // A direct read gives whole sectors, except at the end of the file.
    const bool more = result > 0 && (!buffer.direct || buffer.have % direct_alignment == 0);
    if (!is_whole && more) {
        read_more(tag);
        return false;
    }
    schedule_.was_read(piece, buffer.have);
    if (!is_whole) {
        schedule_.done(piece, fault_of(piece, result < 0 ? static_cast<int>(-result) : 0));
        return true;
    }
    const auto start = Clock::now();
    if (piece.wanted)
        piece.range->takes[piece.slot]({buffer.memory + buffer.skew, piece.bytes}, piece.first);
    schedule_.done(piece, std::nullopt, seconds_since(start));
    return true;
}

}  // namespace tensor_ops::stream
