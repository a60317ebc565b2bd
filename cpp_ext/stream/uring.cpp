// io_uring by its system calls alone: io_uring(7), io_uring_setup(2), io_uring_enter(2).
#include "stream/requests.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>

namespace tensor_ops::stream {
namespace {

// What completes beside the reads, which have small tags.
constexpr std::uint64_t wake_tag = UINT64_MAX, cancel_tag = UINT64_MAX - 1;

unsigned load(const unsigned* p) {
    return std::atomic_ref(*const_cast<unsigned*>(p)).load(std::memory_order_acquire);
}
void store(unsigned* p, unsigned value) {
    std::atomic_ref(*p).store(value, std::memory_order_release);
}

// Memory that the kernel shares with us.
class Mapping {
 public:
    ~Mapping() {
        if (data_ != MAP_FAILED) munmap(data_, bytes_);
    }
    bool map(int ring, std::size_t bytes, off_t what) {
        bytes_ = bytes;
        data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);
        return data_ != MAP_FAILED;
    }
    template <class T>
    T* at(std::size_t offset) const {
        return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
    }

 private:
    void* data_ = MAP_FAILED;
    std::size_t bytes_ = 0;
};

class UringRequests : public Requests {
 public:
    // False if this process cannot use io_uring.
    bool open(std::size_t depth) {
        depth_ = depth;
        // Room for 2 (depth + 1) completions: the reads, their cancels and the wake.
        io_uring_params p{};
        ring_ = static_cast<int>(syscall(SYS_io_uring_setup, depth + 1, &p));
        // These features exist from Linux 5.6 on, as does IORING_OP_READ.
        constexpr unsigned needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_RW_CUR_POS;
        if (ring_ < 0 || (p.features & needed) != needed) return false;
        const std::size_t queue_bytes =
            std::max(p.sq_off.array + p.sq_entries * sizeof(unsigned),
                     p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe));
        if (!queues_.map(ring_, queue_bytes, IORING_OFF_SQ_RING) ||
            !entries_.map(ring_, p.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES))
            return false;
        sq_tail_ = queues_.at<unsigned>(p.sq_off.tail);
        sq_mask_ = *queues_.at<unsigned>(p.sq_off.ring_mask);
        sq_array_ = queues_.at<unsigned>(p.sq_off.array);
        cq_head_ = queues_.at<unsigned>(p.cq_off.head);
        cq_tail_ = queues_.at<unsigned>(p.cq_off.tail);
        cq_mask_ = *queues_.at<unsigned>(p.cq_off.ring_mask);
        cqes_ = queues_.at<io_uring_cqe>(p.cq_off.cqes);
        wake_ = eventfd(0, EFD_CLOEXEC);
        if (wake_ < 0) return false;
        io_uring_sqe poll{};
        poll.opcode = IORING_OP_POLL_ADD;
        poll.fd = wake_;
        poll.poll_events = POLLIN;
        poll.user_data = wake_tag;
        return submit(poll);
    }

    ~UringRequests() override {
        if (ring_ >= 0) close(ring_);
        if (wake_ >= 0) close(wake_);
    }

    void start(std::size_t tag, const Read& read) override {
        if (cancelled_) return done_.push_back({tag, -ECANCELED});
        io_uring_sqe entry{};
        entry.opcode = IORING_OP_READ;
        entry.fd = read.descriptor;
        entry.addr = reinterpret_cast<std::uint64_t>(read.memory);
        entry.len = static_cast<unsigned>(read.bytes);
        entry.off = read.offset;
        entry.user_data = tag;
        if (submit(entry)) return;
        // The kernel lacks a resource for the moment: this read goes without io_uring.
        done_.push_back({tag, read_now(read)});
    }

    Outcome finish() override {
        while (done_.empty()) {
            const io_uring_cqe entry = next();
            if (entry.user_data == wake_tag) {
                cancel_all();
            } else if (entry.user_data != cancel_tag) {
                done_.push_back({static_cast<std::size_t>(entry.user_data), entry.res});
            }
        }
        const Outcome outcome = done_.front();
        done_.pop_front();
        return outcome;
    }

    void cancel() override {
        const std::uint64_t one = 1;
        [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
    }

 private:
    io_uring_cqe next() {
        const unsigned head = *cq_head_;
        while (head == load(cq_tail_)) enter(0, 1, IORING_ENTER_GETEVENTS);
        const io_uring_cqe entry = cqes_[head & cq_mask_];
        store(cq_head_, head + 1);
        return entry;
    }

    void cancel_all() {
        cancelled_ = true;
        for (std::size_t tag = 0; tag < depth_; ++tag) {
            io_uring_sqe entry{};
            entry.opcode = IORING_OP_ASYNC_CANCEL;
            entry.addr = tag;
            entry.user_data = cancel_tag;
            submit(entry);  // a read that it does not reach ends by itself
        }
    }

    long enter(unsigned to_submit, unsigned to_wait_for, unsigned flags) {
        return syscall(SYS_io_uring_enter, ring_, to_submit, to_wait_for, flags, nullptr, 0);
    }

    bool submit(const io_uring_sqe& entry) {
        const unsigned tail = *sq_tail_;
        entries_.at<io_uring_sqe>(0)[tail & sq_mask_] = entry;
        sq_array_[tail & sq_mask_] = tail & sq_mask_;
        store(sq_tail_, tail + 1);
        if (enter(1, 0, 0) == 1) return true;
        store(sq_tail_, tail);  // the kernel has not seen the entry
        return false;
    }

    int ring_ = -1, wake_ = -1;
    Mapping queues_, entries_;
    unsigned *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
    unsigned sq_mask_ = 0, cq_mask_ = 0;
    io_uring_cqe* cqes_ = nullptr;
    std::size_t depth_ = 0;
    bool cancelled_ = false;
    std::deque<Outcome> done_;
};

}  // namespace

std::unique_ptr<Requests> uring_requests(std::size_t depth) {
    auto requests = std::make_unique<UringRequests>();
    return requests->open(depth) ? std::move(requests) : nullptr;
}

}  // namespace tensor_ops::stream

#else

namespace tensor_ops::stream {

std::unique_ptr<Requests> uring_requests(std::size_t) { return nullptr; }

}  // namespace tensor_ops::stream

#endif
