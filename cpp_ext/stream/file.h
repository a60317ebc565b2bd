// A file that a stream reads, past the page cache where the file system allows that.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace tensor_ops::stream {

// A read can bypass the page cache if its offset, length and address are multiples of this many
// bytes.  The sectors of block devices and the blocks of file systems in common use divide it.
inline constexpr std::size_t direct_alignment = 4096;

class File {
 public:
    // Opens the file of `descriptor` once more, so that a rename does no harm; the descriptor stays
    // the caller's.  direct: read past the page cache, where the file system allows that.  name:
    // for messages.  Throws std::system_error.
    File(int descriptor, std::string name, bool direct);
    ~File();
    File(const File&) = delete;

    const std::string& name() const { return name_; }
    bool direct() const { return use_direct_.load(std::memory_order_relaxed); }
    int descriptor() const { return direct() ? direct_ : buffered_; }
    // Reads through the page cache from now on: some file systems refuse direct reads only when
    // they come.
    void refuse_direct() { use_direct_.store(false, std::memory_order_relaxed); }
    // Whether the file's size or modification time has changed since it was opened here.
    bool changed() const;
    // Its length now, in bytes.
    std::uint64_t size() const;

 private:
    std::string name_;
    int buffered_ = -1, direct_ = -1;
    std::atomic<bool> use_direct_{false};
    struct stat opened_{};
};

}  // namespace tensor_ops::stream
