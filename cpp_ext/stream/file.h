// A file as the stream reads it: past the page cache where the file system allows that.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace tensor_ops::stream {

// Reads at and into multiples of this many bytes bypass the page cache: what every block device's
// sectors and every file system's blocks divide, where they divide any power of two in common use.
inline constexpr std::size_t direct_alignment = 4096;

class File {
 public:
    // Opens what `descriptor` refers to once more, so that a rename does no harm; the descriptor
    // stays the caller's.  direct: past the page cache, where the file system takes that.  name is
    // for messages.  Throws std::system_error.
    File(int descriptor, std::string name, bool direct);
    ~File();
    File(const File&) = delete;

    const std::string& name() const { return name_; }
    bool direct() const { return use_direct_.load(std::memory_order_relaxed); }
    int descriptor() const { return direct() ? direct_ : buffered_; }
    // From now on through the page cache: some file systems refuse direct reads only when they
    // come.
    void refuse_direct() { use_direct_.store(false, std::memory_order_relaxed); }
    // Whether it was written to or truncated since it was opened here.
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
