// A file of zeros that nobody else sees, and that goes away with its object.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "check.h"
#include "stream/file.h"

class TemporaryFile {
 public:
    explicit TemporaryFile(off_t bytes) {
        char path[] = "/tmp/tensor_ops_test_XXXXXX";
        descriptor_ = mkstemp(path);
        unlink(path);
        check::equal(ftruncate(descriptor_, bytes), 0, "ftruncate");
    }
    ~TemporaryFile() { close(descriptor_); }
    TemporaryFile(const TemporaryFile&) = delete;
    int descriptor() const { return descriptor_; }
    std::shared_ptr<tensor_ops::stream::File> opened(bool direct) const {
        return std::make_shared<tensor_ops::stream::File>(descriptor_, "the file", direct);
    }

 private:
    int descriptor_;
};
