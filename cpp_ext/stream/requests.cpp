#include "stream/requests.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <deque>

namespace tensor_ops::stream {
namespace {

class BlockingRequests : public Requests {
 public:
    void start(std::size_t tag, const Read& read) override { waiting_.push_back({tag, read}); }

    Outcome finish() override {
        const auto [tag, read] = waiting_.front();
        waiting_.pop_front();
        if (cancelled_) return {tag, -ECANCELED};
        return {tag, read_now(read)};
    }

    void cancel() override { cancelled_ = true; }

 private:
    struct Waiting {
        std::size_t tag;
        Read read;
    };
    std::deque<Waiting> waiting_;
    std::atomic<bool> cancelled_{false};
};

}  // namespace

ssize_t read_now(const Read& read) {
    const ssize_t n =
        pread(read.descriptor, read.memory, read.bytes, static_cast<off_t>(read.offset));
    return n < 0 ? -errno : n;
}

std::unique_ptr<Requests> blocking_requests(std::size_t) {
    return std::make_unique<BlockingRequests>();
}

}  // namespace tensor_ops::stream
