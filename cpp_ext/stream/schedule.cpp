#include "stream/schedule.h"

#include <algorithm>
#include <cerrno>

namespace tensor_ops::stream {

Schedule::Schedule(std::vector<std::shared_ptr<File>> files, std::vector<Section> sections,
                   std::size_t slots, std::size_t piece_bytes, bool endless)
    : files_(std::move(files)), piece_bytes_(piece_bytes), endless_(endless), slots_(slots) {
    if (sections.empty()) largest_piece_ = piece_bytes;
    for (Section& section : sections) {
        sections_.push_back(planned(std::move(section)));
        for (const Piece& piece : sections_.back().pieces)
            largest_piece_ = std::max(largest_piece_, piece.bytes);
    }
}

Schedule::Planned Schedule::planned(Section section) const {
    std::size_t bytes = 0;
    for (const Range& range : section) {
        if (range.file >= files_.size() || range.unit == 0 || range.takes.size() != slots_.size() ||
            range.offset > UINT64_MAX / 4 || range.bytes > SIZE_MAX / 4)
            throw std::invalid_argument("Stream: a range makes no sense");
        bytes += range.bytes;
    }
    if (bytes == 0) throw std::invalid_argument("Stream: a section has no bytes");
    Planned plan{std::move(section), {}};
    for (const Range& range : plan.ranges) {
        const std::size_t step = std::max(range.unit, piece_bytes_ / range.unit * range.unit);
        for (std::size_t first = 0; first < range.bytes; first += step)
            plan.pieces.push_back({.range = &range,
                                   .file = files_[range.file].get(),
                                   .first = first,
                                   .bytes = std::min(step, range.bytes - first)});
    }
    return plan;
}

// ---- readers

std::optional<Piece> Schedule::claim(bool wait) {
    std::unique_lock lock(mutex_);
    for (;;) {
        if (closed_) return std::nullopt;
        const bool ended = !endless_ && filling_ >= sections_.size();
        Slot& slot = slots_[filling_ % slots_.size()];
        const bool has_room = filling_ - next_ < slots_.size();
        // Pieces of an older era may still be on their way into the slot.
        const bool is_clear = next_piece_ > 0 || slot.in_flight == 0;
        if (!ended && has_room && is_clear) {
            const std::vector<Piece>& pieces = sections_[filling_ % sections_.size()].pieces;
            if (next_piece_ == 0) {
                slot.sequence = filling_;
                slot.left = pieces.size();
            }
            Piece piece = pieces[next_piece_];
            piece.slot = filling_ % slots_.size();
            piece.era = era_;
            if (++next_piece_ == pieces.size()) {
                next_piece_ = 0;
                ++filling_;
            }
            ++slot.in_flight;
            if (reading_++ == 0) {
                counts_.waited_for_compute += seconds_since(changed_);
                changed_ = Clock::now();
            }
            return piece;
        }
        if (!wait) return std::nullopt;
        work_.wait(lock);
    }
}

void Schedule::was_read(Piece& piece, std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    counts_.bytes_read += bytes;
    if (--reading_ == 0) {
        counts_.disk_seconds += seconds_since(changed_);
        changed_ = Clock::now();
    }
    piece.wanted = !closed_ && piece.era == era_;
    settling_ += piece.wanted;
}

void Schedule::done(const Piece& piece, std::optional<Fault> fault, double take_seconds) {
    const std::lock_guard lock(mutex_);
    Slot& slot = slots_[piece.slot];
    --slot.in_flight;
    if (piece.wanted && --settling_ == 0) settled_.notify_all();
    counts_.take_seconds += take_seconds;
    if (piece.era == era_) {
        --slot.left;
        if (fault && !slot.fault) slot.fault = std::move(fault);
        if (slot.left == 0 || slot.fault) progress_.notify_all();
    } else if (slot.in_flight == 0) {
        work_.notify_all();
    }
}

// ---- the consumer

std::optional<Taken> Schedule::take(std::chrono::milliseconds at_most) {
    std::unique_lock lock(mutex_);
    // Repeated after the wait: another thread may have taken this section, or closed the stream.
    const auto check = [&] {
        if (closed_) throw std::logic_error("it is closed");
        if (held_) throw std::logic_error("the last section was not released");
        if (!endless_ && next_ >= sections_.size())
            throw std::logic_error("there is no other section");
    };
    check();
    const auto is_there = [&] {
        const Slot& here = slots_[next_ % slots_.size()];
        return closed_ || here.fault || (here.sequence == next_ && here.left == 0);
    };
    if (!is_there()) {
        const auto start = Clock::now();
        const bool came = progress_.wait_for(lock, at_most, is_there);
        counts_.waited_for_disk += seconds_since(start);
        if (!came) return std::nullopt;
        check();
    }
    const Slot& slot = slots_[next_ % slots_.size()];
    if (slot.fault) throw *slot.fault;
    const std::size_t section = next_ % sections_.size();
    for (const Range& range : sections_[section].ranges) {
        const File& file = *files_[range.file];
        if (file.changed())
            throw Fault(ESTALE, file.name(), "the file was changed while it was read");
    }
    for (const Range& range : sections_[section].ranges) counts_.bytes_taken += range.bytes;
    held_ = true;
    return Taken{section, next_ % slots_.size()};
}

void Schedule::release() {
    const std::lock_guard lock(mutex_);
    if (!held_) return;
    held_ = false;
    if (!endless_) sections_[next_] = {};  // it is not read again
    ++next_;
    work_.notify_all();
}

void Schedule::rewind() {
    if (!endless_) throw std::logic_error("it is read once, from its first section on");
    const std::lock_guard lock(mutex_);
    held_ = false;
    ++era_;
    filling_ = next_ = next_piece_ = 0;
    for (Slot& slot : slots_) {
        slot.sequence = UINT64_MAX;
        slot.fault.reset();
    }
    work_.notify_all();
}

void Schedule::push(Section section) {
    if (endless_) throw std::invalid_argument("Stream: an endless one has its sections");
    Planned plan = planned(std::move(section));
    for (const Piece& piece : plan.pieces)
        if (piece.bytes > largest_piece_)
            throw std::invalid_argument("Stream: a range's unit is larger than its buffers");
    const std::lock_guard lock(mutex_);
    sections_.push_back(std::move(plan));
    work_.notify_all();
}

void Schedule::close() {
    std::unique_lock lock(mutex_);
    closed_ = true;
    work_.notify_all();
    progress_.notify_all();
    settled_.wait(lock, [&] { return settling_ == 0; });
}

Counts Schedule::counts() const {
    const std::lock_guard lock(mutex_);
    Counts now = counts_;
    (reading_ ? now.disk_seconds : now.waited_for_compute) += seconds_since(changed_);
    return now;
}

}  // namespace tensor_ops::stream
