#include "stream/stream.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <thread>

namespace tensor_ops::stream {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr std::size_t longest_read = 1u << 30;  // Linux reads less than 2 GiB at a time

std::size_t round_down(std::size_t n) { return n / direct_alignment * direct_alignment; }
std::size_t round_up(std::size_t n) { return round_down(n + direct_alignment - 1); }

// Pages of our own: given back to the system, not to malloc, so that a read which the kernel could
// not cancel finishes in memory that nobody else has.
class Pages {
 public:
    explicit Pages(std::size_t bytes)
        : bytes_(bytes),
          data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
        if (data_ == MAP_FAILED) throw std::bad_alloc();
    }
    ~Pages() { munmap(data_, bytes_); }
    Pages(const Pages&) = delete;
    std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
    std::size_t bytes_;
    void* data_;
};

// A part of a range that is read at once.
struct Piece {
    std::size_t range, first, bytes;
};

std::vector<Piece> pieces_of(const Section& section, std::size_t piece_bytes) {
    std::vector<Piece> pieces;
    for (std::size_t r = 0; r < section.size(); ++r) {
        const Range& range = section[r];
        const std::size_t step = std::max(range.unit, piece_bytes / range.unit * range.unit);
        for (std::size_t first = 0; first < range.bytes; first += step)
            pieces.push_back({r, first, std::min(step, range.bytes - first)});
    }
    return pieces;
}

}  // namespace

struct Stream::State {
    struct Slot {
        std::uint64_t sequence = UINT64_MAX;  // of the section in it, counted from the last rewind
        std::size_t left = 0;                 // of its pieces, those that are not in their place
        std::size_t in_flight = 0;            // pieces that threads work on, also forgotten ones
        std::optional<Fault> fault;
    };
    struct Job {
        const Range* range = nullptr;
        Piece piece{};
        std::size_t slot = 0;
        std::uint64_t era = 0;
    };
    // A read under way, and its memory.
    struct Buffer {
        std::byte* memory = nullptr;
        bool busy = false;
        Job job;
        std::size_t skew = 0, have = 0;  // bytes before the piece; bytes that were read
        bool direct = false;
    };

    std::vector<std::shared_ptr<File>> files;
    std::deque<Section> sections;           // deques: threads are at work on what is there
    std::deque<std::vector<Piece>> pieces;  // of each section
    Options options;
    std::size_t buffer_bytes = 0;
    std::size_t depth_each = 1;                       // reads under way of each thread
    std::vector<std::unique_ptr<Pages>> memory;       // of each thread
    std::vector<std::unique_ptr<Requests>> requests;  // likewise
    pid_t process = getpid();

    mutable std::mutex mutex;
    std::condition_variable work, progress;
    bool closed = false, held = false;
    std::size_t running = 0;
    std::uint64_t era = 0;                // rewinds
    std::uint64_t filling = 0, next = 0;  // sequence numbers: being read, and to be taken
    std::size_t next_piece = 0;           // of the section that is being read
    std::vector<Slot> slots;
    Stats stats;
    std::size_t reading = 0;                   // reads under way
    Clock::time_point changed = Clock::now();  // when `reading` last began or ceased to be 0

    void work_through(std::size_t thread);
    std::optional<Job> claim(bool wait);
    void begin(Requests& io, std::size_t tag, Buffer& buffer);
    void read_more(Requests& io, std::size_t tag, Buffer& buffer);
    bool finished(Requests& io, std::size_t tag, Buffer& buffer, ssize_t result);
    void finish_reading();
    void done(const Job& job, std::optional<Fault> fault, double take_seconds);
    std::optional<Fault> fault_of(const Buffer& buffer, int error) const;
    File& file_of(const Job& job) const { return *files[job.range->file]; }
};

// The next piece that a slot has room for; waits for one, or for the end, if told to.
std::optional<Stream::State::Job> Stream::State::claim(bool wait) {
    std::unique_lock lock(mutex);
    for (;;) {
        if (closed) return std::nullopt;
        const bool ended = !options.endless && filling >= sections.size();
        Slot& slot = slots[filling % slots.size()];
        const bool has_room = filling - next < slots.size();
        // Pieces that were forgotten by a rewind may still be on their way into the slot.
        const bool is_clear = next_piece > 0 || slot.in_flight == 0;
        if (!ended && has_room && is_clear) {
            const std::size_t section = filling % sections.size();
            if (next_piece == 0) {
                slot.sequence = filling;
                slot.left = pieces[section].size();
                slot.fault.reset();
            }
            const Piece piece = pieces[section][next_piece];
            const Job job{&sections[section][piece.range], piece, filling % slots.size(), era};
            if (++next_piece == pieces[section].size()) {
                next_piece = 0;
                ++filling;
            }
            ++slot.in_flight;
            if (reading++ == 0) {
                stats.waited_for_compute += seconds_since(changed);
                changed = Clock::now();
            }
            return job;
        }
        if (!wait) return std::nullopt;
        work.wait(lock);
    }
}

void Stream::State::finish_reading() {
    const std::lock_guard lock(mutex);
    if (--reading == 0) {
        stats.disk_seconds += seconds_since(changed);
        changed = Clock::now();
    }
}

void Stream::State::done(const Job& job, std::optional<Fault> fault, double take_seconds) {
    const std::lock_guard lock(mutex);
    Slot& slot = slots[job.slot];
    --slot.in_flight;
    stats.take_seconds += take_seconds;
    if (job.era == era) {
        --slot.left;
        if (fault && !slot.fault) slot.fault = std::move(fault);
        if (slot.left == 0 || slot.fault) progress.notify_all();
    } else if (slot.in_flight == 0) {
        work.notify_all();
    }
}

void Stream::State::begin(Requests& io, std::size_t tag, Buffer& buffer) {
    const Job& job = buffer.job;
    const std::uint64_t start = job.range->offset + job.piece.first;
    buffer.direct = file_of(job).direct();
    buffer.skew = buffer.direct ? start % direct_alignment : 0;
    buffer.have = 0;
    read_more(io, tag, buffer);
}

void Stream::State::read_more(Requests& io, std::size_t tag, Buffer& buffer) {
    const Job& job = buffer.job;
    const std::uint64_t start = job.range->offset + job.piece.first - buffer.skew;
    const std::size_t wanted = buffer.skew + job.piece.bytes;
    const std::size_t end = buffer.direct ? round_up(wanted) : wanted;
    io.start(tag, {file_of(job).descriptor(), buffer.memory + buffer.have,
                   std::min(end - buffer.have, longest_read), start + buffer.have});
}

std::optional<Fault> Stream::State::fault_of(const Buffer& buffer, int error) const {
    const Job& job = buffer.job;
    const File& file = file_of(job);
    const std::uint64_t offset = job.range->offset + job.piece.first;
    const std::string where =
        std::to_string(job.piece.bytes) + " bytes at offset " + std::to_string(offset);
    if (error == 0)
        return Fault(EIO, file.name(),
                     "the file ends at " + std::to_string(file.size()) + ", before the end of " +
                         where + ": it is truncated");
    return Fault(error, file.name(), std::string(std::strerror(error)) + ", reading " + where);
}

// Whether all of the piece is there, or never will be: then it was put in its place, or reported.
bool Stream::State::finished(Requests& io, std::size_t tag, Buffer& buffer, ssize_t result) {
    const Job& job = buffer.job;
    if (result == -EINTR || result == -EAGAIN) {
        read_more(io, tag, buffer);
        return false;
    }
    if (result == -EINVAL && buffer.direct) {
        file_of(job).refuse_direct();
        begin(io, tag, buffer);
        return false;
    }
    if (result > 0) {
        buffer.have += static_cast<std::size_t>(result);
        const std::lock_guard lock(mutex);
        stats.bytes_read += static_cast<std::uint64_t>(result);
    }
    if (buffer.have >= buffer.skew + job.piece.bytes) {
        finish_reading();
        bool wanted;
        {
            const std::lock_guard lock(mutex);
            wanted = !closed && job.era == era;
        }
        const auto start = Clock::now();
        if (wanted)
            job.range->takes[job.slot]({buffer.memory + buffer.skew, job.piece.bytes},
                                       job.piece.first);
        done(job, std::nullopt, seconds_since(start));
        return true;
    }
    // A direct read is whole sectors but at the end of the file.
    const bool more = result > 0 && (!buffer.direct || buffer.have % direct_alignment == 0);
    if (more) {
        read_more(io, tag, buffer);
        return false;
    }
    finish_reading();
    done(job, fault_of(buffer, result < 0 ? static_cast<int>(-result) : 0), 0);
    return true;
}

void Stream::State::work_through(std::size_t thread) {
    Requests& io = *requests[thread];
    std::vector<Buffer> buffers(depth_each);
    for (std::size_t i = 0; i < depth_each; ++i)
        buffers[i].memory = memory[thread]->data() + i * buffer_bytes;
    std::size_t under_way = 0;
    for (;;) {
        for (std::size_t i = 0; i < depth_each; ++i) {
            if (buffers[i].busy) continue;
            const std::optional<Job> job = claim(under_way == 0);
            if (!job) break;
            buffers[i].busy = true;
            buffers[i].job = *job;
            ++under_way;
            begin(io, i, buffers[i]);
        }
        if (under_way == 0) return;  // closed
        const std::optional<Outcome> outcome = io.finish();
        if (!outcome) return;
        Buffer& buffer = buffers[outcome->tag];
        if (finished(io, outcome->tag, buffer, outcome->result)) {
            buffer.busy = false;
            --under_way;
        }
    }
}

Stream::Stream(std::vector<std::shared_ptr<File>> files, std::vector<Section> sections,
               Options options, MakeRequests make)
    : state_(std::make_shared<State>()) {
    State& s = *state_;
    if ((sections.empty() && options.endless) || !options.slots || !options.threads ||
        !options.depth || !options.piece_bytes)
        throw std::invalid_argument("Stream: no sections, slots, threads, depth or piece_bytes");
    s.files = std::move(files);
    s.options = options;
    s.slots.resize(options.slots);
    std::size_t largest = sections.empty() ? options.piece_bytes : 0;
    for (Section& section : sections) {
        check(section);
        s.pieces.push_back(pieces_of(section, options.piece_bytes));
        for (const Piece& piece : s.pieces.back()) largest = std::max(largest, piece.bytes);
        s.sections.push_back(std::move(section));
    }
    s.buffer_bytes = round_up(largest) + 2 * direct_alignment;

    // Large units make large buffers: fewer of them then, in about the same memory.
    const std::size_t fit = options.depth * options.piece_bytes / largest;
    std::size_t depth = std::clamp<std::size_t>(fit, 1, options.depth);
    std::size_t threads = std::min(options.threads, depth);
    if (!make && options.uring)
        if (auto first = uring_requests(depth / threads)) {
            s.requests.push_back(std::move(first));
            s.stats.uring = true;
            make = uring_requests;
        }
    if (!make) {
        make = blocking_requests;
        threads = depth;
    }
    s.depth_each = depth / threads;
    while (s.requests.size() < threads) {
        auto next = make(s.depth_each);
        if (!next) break;  // the system has no more; one is there
        s.requests.push_back(std::move(next));
    }
    if (s.requests.empty()) throw std::invalid_argument("Stream: no reads are possible");
    threads = s.requests.size();
    for (std::size_t i = 0; i < threads; ++i)
        s.memory.push_back(std::make_unique<Pages>(s.depth_each * s.buffer_bytes));
    s.stats.depth = s.depth_each * threads;
    s.stats.buffer_bytes = s.stats.depth * s.buffer_bytes;

    // Signals are for the program's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        for (std::size_t i = 0; i < threads; ++i) {
            {
                const std::lock_guard lock(s.mutex);
                ++s.running;
            }
            std::thread([state = state_, i] {
                state->work_through(i);
                const std::lock_guard lock(state->mutex);
                --state->running;
                state->progress.notify_all();
            }).detach();
        }
    } catch (...) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        --s.running;
        close();
        throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Stream::~Stream() {
    if (state_->process == getpid())
        close();
    else
        new std::shared_ptr<State>(state_);  // a child of fork() has none of the threads: leaked
}

void Stream::check_usable() const {
    if (state_->process != getpid())
        throw std::logic_error("it was opened before fork(); open another in this process");
}

std::optional<Stream::Taken> Stream::take(std::chrono::milliseconds at_most) {
    check_usable();
    State& s = *state_;
    std::unique_lock lock(s.mutex);
    if (s.closed) throw std::logic_error("it is closed");
    if (s.held) throw std::logic_error("the last section was not released");
    if (!s.options.endless && s.next >= s.sections.size())
        throw std::logic_error("there is no other section");
    const State::Slot& slot = s.slots[s.next % s.slots.size()];
    const auto is_there = [&] {
        return s.closed || slot.fault || (slot.sequence == s.next && slot.left == 0);
    };
    if (!is_there()) {
        const auto start = Clock::now();
        const bool came = s.progress.wait_for(lock, at_most, is_there);
        s.stats.waited_for_disk += seconds_since(start);
        if (!came) return std::nullopt;
    }
    if (s.closed) throw std::logic_error("it is closed");
    if (slot.fault) throw *slot.fault;
    const std::size_t section = s.next % s.sections.size();
    for (const Range& range : s.sections[section]) {
        const File& file = *s.files[range.file];
        if (file.changed())
            throw Fault(ESTALE, file.name(), "the file was changed while it was read");
    }
    for (const Range& range : s.sections[section]) s.stats.bytes_taken += range.bytes;
    s.held = true;
    return Taken{section, s.next % s.slots.size()};
}

void Stream::release() {
    check_usable();
    State& s = *state_;
    const std::lock_guard lock(s.mutex);
    if (!s.held) return;
    s.held = false;
    if (!s.options.endless) {  // nobody comes back to it
        s.sections[s.next].clear();
        s.pieces[s.next].clear();
    }
    ++s.next;
    s.work.notify_all();
}

void Stream::check(const Section& section) const {
    const State& s = *state_;
    std::size_t bytes = 0;
    for (const Range& range : section) {
        if (range.file >= s.files.size() || range.unit == 0 ||
            range.takes.size() != s.options.slots || range.offset > UINT64_MAX / 4 ||
            range.bytes > SIZE_MAX / 4)
            throw std::invalid_argument("Stream: a range makes no sense");
        bytes += range.bytes;
    }
    if (bytes == 0) throw std::invalid_argument("Stream: a section has no bytes");
}

void Stream::push(Section section) {
    check_usable();
    State& s = *state_;
    if (s.options.endless) throw std::invalid_argument("Stream: an endless one has its sections");
    check(section);
    std::vector<Piece> pieces = pieces_of(section, s.options.piece_bytes);
    for (const Piece& piece : pieces)
        if (round_up(piece.bytes) + 2 * direct_alignment > s.buffer_bytes)
            throw std::invalid_argument("Stream: a range's unit is larger than its buffers");
    const std::lock_guard lock(s.mutex);
    s.sections.push_back(std::move(section));
    s.pieces.push_back(std::move(pieces));
    s.work.notify_all();
}

void Stream::rewind() {
    check_usable();
    State& s = *state_;
    if (!s.options.endless) throw std::logic_error("it is read once, from its first section on");
    const std::lock_guard lock(s.mutex);
    s.held = false;
    ++s.era;
    s.filling = s.next = s.next_piece = 0;
    for (State::Slot& slot : s.slots) {
        slot.sequence = UINT64_MAX;
        slot.fault.reset();
    }
    s.work.notify_all();
}

void Stream::close() {
    if (state_->process != getpid()) return;
    State& s = *state_;
    std::unique_lock lock(s.mutex);
    s.closed = true;
    s.work.notify_all();
    s.progress.notify_all();
    for (const auto& requests : s.requests) requests->wake();
    s.progress.wait_for(lock, std::chrono::milliseconds(200), [&] { return s.running == 0; });
}

Stats Stream::stats() const {
    const State& s = *state_;
    const std::lock_guard lock(s.mutex);
    Stats now = s.stats;
    (s.reading ? now.disk_seconds : now.waited_for_compute) += seconds_since(s.changed);
    now.direct = std::all_of(s.files.begin(), s.files.end(),
                             [](const auto& file) { return file->direct(); });
    return now;
}

}  // namespace tensor_ops::stream
