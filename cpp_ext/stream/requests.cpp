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

    std::optional<Outcome> finish() override {
        if (woken_) return std::nullopt;
        const auto [tag, read] = waiting_.front();
        waiting_.pop_front();
        const ssize_t n =
            pread(read.descriptor, read.memory, read.bytes, static_cast<off_t>(read.offset));
        return Outcome{tag, n < 0 ? -errno : n};
    }

    void wake() override { woken_ = true; }

 private:
    struct Waiting {
        std::size_t tag;
        Read read;
    };
    std::deque<Waiting> waiting_;
    std::atomic<bool> woken_{false};
};

}  // namespace

std::unique_ptr<Requests> blocking_requests(std::size_t) {
    return std::make_unique<BlockingRequests>();
}

}  // namespace tensor_ops::stream
