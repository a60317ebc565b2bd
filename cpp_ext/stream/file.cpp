#include "stream/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace tensor_ops::stream {
namespace {

const timespec& modified(const struct stat& status) {
#if defined(__APPLE__)
    return status.st_mtimespec;
#else
    return status.st_mtim;
#endif
}

// Opens the same file again: a duplicate of the descriptor would share its flags.
int open_again([[maybe_unused]] int descriptor, [[maybe_unused]] int flags) {
#if defined(__linux__)
    return open(("/proc/self/fd/" + std::to_string(descriptor)).c_str(),
                O_RDONLY | O_CLOEXEC | flags);
#else
    errno = ENOTSUP;
    return -1;
#endif
}

}  // namespace

File::File(int descriptor, std::string name, bool direct) : name_(std::move(name)) {
    buffered_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (buffered_ < 0 || fstat(buffered_, &opened_) != 0) {
        const int error = errno;
        if (buffered_ >= 0) close(buffered_);
        throw std::system_error(error, std::generic_category(), name_);
    }
#if defined(O_DIRECT)
    if (direct) direct_ = open_again(descriptor, O_DIRECT);
#elif defined(F_NOCACHE)
    if (direct && (direct_ = dup(buffered_)) >= 0) fcntl(direct_, F_NOCACHE, 1);
#endif
    use_direct_ = direct_ >= 0;
}

File::~File() {
    if (direct_ >= 0) close(direct_);
    close(buffered_);
}

bool File::changed() const {
    struct stat now;
    if (fstat(buffered_, &now) != 0) return true;
    const timespec &then_time = modified(opened_), &now_time = modified(now);
    return now.st_size != opened_.st_size || now_time.tv_sec != then_time.tv_sec ||
           now_time.tv_nsec != then_time.tv_nsec;
}

std::uint64_t File::size() const {
    struct stat now;
    return fstat(buffered_, &now) == 0 ? static_cast<std::uint64_t>(now.st_size) : 0;
}

}  // namespace tensor_ops::stream
