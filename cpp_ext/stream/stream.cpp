#include "stream/stream.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "stream/reader.h"
#include "stream/schedule.h"

namespace tensor_ops::stream {
namespace {

struct Requested {
    std::vector<std::unique_ptr<Requests>> of_readers;  // at least one
    std::size_t depth = 1;                              // of each
    bool uring = false;
};

// Divides the reads that may be under way, as many as `options` say, among the readers.
Requested make_requests(const Options& options, std::size_t largest_piece, MakeRequests make) {
    Requested made;
    // Large units need large buffers: there are fewer of them then, in about the same memory.
    const std::size_t fit = options.depth * options.piece_bytes / largest_piece;
    const std::size_t depth = std::clamp<std::size_t>(fit, 1, options.depth);
    std::size_t readers = std::min(options.threads, depth);
    if (!make && options.uring)
        if (auto first = uring_requests(depth / readers)) {
            made.of_readers.push_back(std::move(first));
            made.uring = true;
            make = uring_requests;
        }
    if (!make) {
        make = blocking_requests;
        readers = depth;
    }
    made.depth = depth / readers;
    while (made.of_readers.size() < readers) {
        auto next = make(made.depth);
        if (!next) break;  // the system grants no more
        made.of_readers.push_back(std::move(next));
    }
    if (made.of_readers.empty()) throw std::invalid_argument("Stream: no reads are possible");
    return made;
}

// Threads that are started meanwhile get no signals: these are for the program's own threads. Those
// that a thread causes itself are not held back: the kernel would kill the process without a word.
class SignalsBlocked {
 public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS})
            sigdelset(&all, own);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;

 private:
    sigset_t before_;
};

}  // namespace

// How many threads there are. It outlives the state, which a thread gives back before it counts
// itself out: the files are closed, and the memory is free, when the stream's end returns.
struct Stream::Threads {
    std::mutex mutex;
    std::condition_variable ended;
    std::size_t running = 0;
};

// Owned by the stream and the threads: a thread that hangs in the system outlives the stream.
struct Stream::State {
    std::vector<std::shared_ptr<File>> files;
    Schedule schedule;
    std::vector<std::unique_ptr<Reader>> readers;  // each runs on a thread of its own
    bool uring = false;
    std::size_t depth = 0;
    pid_t process = getpid();

    State(std::vector<std::shared_ptr<File>> files_, std::vector<Section> sections,
          const Options& options)
        : files(std::move(files_)),
          schedule(files, std::move(sections), options.slots, options.piece_bytes,
                   options.endless) {}
};

std::shared_ptr<Stream::State> Stream::made(std::vector<std::shared_ptr<File>> files,
                                            std::vector<Section> sections, const Options& options,
                                            MakeRequests make) {
    if ((sections.empty() && options.endless) || !options.slots || !options.threads ||
        !options.depth || !options.piece_bytes)
        throw std::invalid_argument("Stream: no sections, slots, threads, depth or piece_bytes");
    auto state = std::make_shared<State>(std::move(files), std::move(sections), options);
    State& s = *state;
    Requested requested = make_requests(options, s.schedule.largest_piece(), std::move(make));
    for (auto& requests : requested.of_readers)
        s.readers.push_back(
            std::make_unique<Reader>(s.schedule, std::move(requests), requested.depth));
    s.uring = requested.uring;
    s.depth = requested.depth * s.readers.size();
    return state;
}

Stream::Stream(std::shared_ptr<State> state)
    : state_(std::move(state)), threads_(std::make_shared<Threads>()) {}

// If a thread cannot start, the destructor ends the others, as there is a stream by then.
Stream::Stream(std::vector<std::shared_ptr<File>> files, std::vector<Section> sections,
               Options options, MakeRequests make)
    : Stream(made(std::move(files), std::move(sections), options, std::move(make))) {
    start_threads();
}

void Stream::start_threads() {
    const SignalsBlocked signals_blocked;  // the threads inherit this
    for (const auto& reader : state_->readers) {
        const std::lock_guard lock(threads_->mutex);
        std::thread([state = state_, threads = threads_, &reader = *reader]() mutable {
            reader.run();
            state.reset();
            const std::lock_guard end(threads->mutex);
            --threads->running;
            threads->ended.notify_all();
        }).detach();
        ++threads_->running;  // the thread waits for the lock before it counts itself out
    }
}

Stream::~Stream() { close(); }

Schedule& Stream::schedule() const {
    if (state_->process != getpid())
        throw std::logic_error("it was opened before fork(); open another in this process");
    return state_->schedule;
}

std::optional<Taken> Stream::take(std::chrono::milliseconds at_most) {
    return schedule().take(at_most);
}

void Stream::release() { schedule().release(); }

void Stream::rewind() { schedule().rewind(); }

void Stream::push(Section section) { schedule().push(std::move(section)); }

void Stream::close() {
    // A child of fork() has none of the threads, and what they share is never destroyed there.
    if (state_->process != getpid()) return;
    state_->schedule.close();
    for (const auto& reader : state_->readers) reader->cancel();
    std::unique_lock lock(threads_->mutex);
    threads_->ended.wait_for(lock, std::chrono::milliseconds(200),
                             [&] { return threads_->running == 0; });
}

Stats Stream::stats() const {
    const State& s = *state_;
    Stats stats{schedule().counts(), s.uring, true, s.depth, 0};
    for (const auto& file : s.files) stats.direct = stats.direct && file->direct();
    for (const auto& reader : s.readers) stats.buffer_bytes += reader->bytes();
    return stats;
}

}  // namespace tensor_ops::stream
