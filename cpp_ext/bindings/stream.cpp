// Streams of files that are read ahead of need (stream/stream.h), and the targets of their bytes.
#include "stream/stream.h"

#include <cstring>
#include <system_error>

#include "bindings/gil.h"
#include "bindings/matrix_object.h"
#include "bindings/module.h"
#include "threads/team.h"

namespace pybind11::detail {
template <>
class type_caster<tensor_ops::AlignedBytes>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::AlignedBytes> {};
}  // namespace pybind11::detail

namespace tensor_ops::bindings {
namespace {

using MemoryPtr = std::shared_ptr<AlignedBytes>;

constexpr const char* not_as_expected =
    "Stream: files or sections are not as expected: (descriptor, name) each, and lists of (file, "
    "offset, bytes, targets), a target being a PackedMatrix or (Memory, offset).";

[[noreturn]] void os_error(int error, const std::string& what, const std::string& file) {
    const py::tuple arguments = py::make_tuple(error, what, file);
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
    throw py::error_already_set();
}

MemoryPtr make_memory(std::size_t bytes) { return std::make_shared<AlignedBytes>(bytes); }

struct Sizes {
    DType type;
    std::size_t n, k;
};

Sizes sizes_argument(const char* op, py::handle type,
                     const std::pair<py::ssize_t, py::ssize_t>& s) {
    constexpr py::ssize_t longest = 0x7fffffff;
    if (std::min(s.first, s.second) < 0 || std::max(s.first, s.second) > longest)
        value_error(std::string(op) + ": shape is out of range; expected (n, k), each from 0 to " +
                    std::to_string(longest) + ".");
    return {dtype_argument({op, "type", type}), static_cast<std::size_t>(s.first),
            static_cast<std::size_t>(s.second)};
}

std::size_t size_when_packed(py::handle type, const std::pair<py::ssize_t, py::ssize_t>& shape) {
    const Sizes sizes = sizes_argument("packed_bytes", type, shape);
    return packed_bytes(sizes.type, sizes.n, sizes.k);
}

PackedMatrixPtr packed_room(const MemoryPtr& memory, std::size_t offset, py::handle type,
                            const std::pair<py::ssize_t, py::ssize_t>& shape) {
    const Sizes sizes = sizes_argument("packed_room", type, shape);
    return std::make_shared<PackedMatrix>(sizes.type, sizes.n, sizes.k, memory, offset);
}

// The function that puts a range's bytes in their place: packed into a PackedMatrix, or unchanged
// into a Memory from an offset on.  It keeps no Python object and needs no GIL, as reading threads
// call and destroy it.
stream::Take take_into(const py::handle& target, std::size_t bytes) {
    if (const PackedMatrixPtr matrix = packed_matrix(target)) {
        if (bytes != matrix_bytes(matrix->type(), matrix->n(), matrix->k()))
            value_error("Stream: a range has " + std::to_string(bytes) +
                        " bytes; the PackedMatrix that it goes to takes another number.");
        const std::size_t unit = matrix->group_source_bytes();
        return [matrix, unit](std::span<const std::byte> piece, std::size_t first) {
            matrix->pack_groups(first / unit, piece);
        };
    }
    const auto [memory, offset] = target.cast<std::pair<MemoryPtr, std::size_t>>();
    if (offset > memory->size() || bytes > memory->size() - offset)
        value_error("Stream: a range of " + std::to_string(bytes) + " bytes does not fit at " +
                    std::to_string(offset) + " of a Memory of " + std::to_string(memory->size()) +
                    " bytes.");
    return [memory, offset](std::span<const std::byte> piece, std::size_t first) {
        std::memcpy(memory->data() + offset + first, piece.data(), piece.size());
    };
}

stream::Range range_argument(const py::handle& item) {
    const auto [file, offset, bytes, targets] =
        item.cast<std::tuple<std::size_t, std::uint64_t, std::size_t, py::sequence>>();
    stream::Range range{file, offset, bytes, 1, {}};
    for (const py::object target : targets) {
        if (const PackedMatrixPtr matrix = packed_matrix(target))
            range.unit = std::max<std::size_t>(1, matrix->group_source_bytes());
        range.takes.push_back(take_into(target, bytes));
    }
    return range;
}

class PyStream {
 public:
    PyStream(const py::sequence& files, const py::sequence& sections, std::size_t threads,
             std::size_t depth, std::size_t piece_bytes, bool endless, bool direct, py::handle io) {
        stream::Options options;
        options.threads = threads ? threads : static_cast<std::size_t>(num_threads());
        options.depth = depth;
        options.piece_bytes = piece_bytes;
        options.endless = endless;
        options.uring = choice({"Stream", "io", io}, {"auto", "threads"}) == 0;
        std::vector<std::shared_ptr<stream::File>> opened;
        std::vector<stream::Section> read;
        try {
            options.slots = py::len(sections) ? options.slots : 1;
            for (const py::object item : sections) {
                stream::Section section;
                for (const py::handle range : item) section.push_back(range_argument(range));
                if (!section.empty()) options.slots = section[0].takes.size();
                read.push_back(std::move(section));
            }
            for (const py::object item : files) {
                const auto [descriptor, name] = item.cast<std::pair<int, std::string>>();
                opened.push_back(std::make_shared<stream::File>(descriptor, name, direct));
            }
            stream_.emplace(std::move(opened), std::move(read), options);
        } catch (const py::cast_error&) {
            throw py::type_error(not_as_expected);
        } catch (const std::system_error& error) {
            os_error(error.code().value(), std::strerror(error.code().value()), error.what());
        }
    }

    // Looks for Ctrl-C ten times a second: a disk may not answer for minutes.
    std::pair<std::size_t, std::size_t> take() {
        for (;;) {
            std::optional<stream::Taken> taken;
            try {
                const WithoutGil released;
                taken = stream_->take(std::chrono::milliseconds(100));
            } catch (const stream::Fault& fault) {
                os_error(fault.error, fault.what(), fault.file);
            }
            if (taken) return {taken->section, taken->slot};
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }
    }

    void push(const py::sequence& ranges) {
        stream::Section section;
        try {
            for (const py::object range : ranges) section.push_back(range_argument(range));
        } catch (const py::cast_error&) {
            throw py::type_error(not_as_expected);
        }
        stream_->push(std::move(section));
    }

    void release() { stream_->release(); }
    void rewind() { stream_->rewind(); }
    void close() {
        const WithoutGil released;
        stream_->close();
    }

    py::dict stats() const {
        const stream::Stats s = stream_->stats();
        py::dict result;
        result["bytes_read"] = s.bytes_read;
        result["bytes_taken"] = s.bytes_taken;
        result["disk_seconds"] = s.disk_seconds;
        result["waited_for_disk_seconds"] = s.waited_for_disk;
        result["waited_for_compute_seconds"] = s.waited_for_compute;
        result["pack_seconds"] = s.take_seconds;
        result["io"] = s.uring ? "io_uring" : "threads";
        result["direct"] = s.direct;
        result["depth"] = s.depth;
        result["buffer_bytes"] = s.buffer_bytes;
        return result;
    }

 private:
    std::optional<stream::Stream> stream_;
};

std::unique_ptr<PyStream> make_stream(const py::sequence& files, const py::sequence& sections,
                                      std::size_t threads, std::size_t depth,
                                      std::size_t piece_bytes, bool endless, bool direct,
                                      py::handle io) {
    return std::make_unique<PyStream>(files, sections, threads, depth, piece_bytes, endless, direct,
                                      io);
}

}  // namespace
}  // namespace tensor_ops::bindings

namespace pybind11::detail {
template <>
class type_caster<tensor_ops::bindings::PyStream>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::bindings::PyStream> {};
}  // namespace pybind11::detail

namespace tensor_ops::bindings {

void bind_stream(py::module_& m) {
    using py::arg;
    py::class_<AlignedBytes, MemoryPtr> memory(
        m, "Memory", py::buffer_protocol(),
        "Uninitialised memory, aligned for vectors, that matrices and streams share.\n\n"
        "A buffer: np.frombuffer(memory, np.uint8) shows it. MemoryError if the system has too "
        "little.");
    define_init(memory, make_memory, arg("nbytes"));
    memory.def_property_readonly("nbytes", &AlignedBytes::size).def_buffer([](AlignedBytes& bytes) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(bytes.data()),
                               static_cast<py::ssize_t>(bytes.size()));
    });
    m.def("packed_bytes", size_when_packed, arg("type"), arg("shape"),
          "Bytes of a matrix (n, k) of that type when PackedMatrix packs it for the ISA in use.");
    m.def(
        "packed_room", packed_room, arg("memory"), arg("offset"), arg("type"), arg("shape"),
        "A PackedMatrix `offset` bytes into a Memory, a multiple of 64, for a Stream to fill.\n\n"
        "Until then its values are undefined. It keeps the Memory alive. Others may be in the same "
        "place, for data that is there at other times.");
    py::class_<PyStream> stream(
        m, "Stream",
        "Byte ranges of files, read ahead of need past the page cache, packed on the way, and "
        "handed over in order.\n\n"
        "files: (descriptor, name) each; the descriptors stay the caller's, the names are for "
        "messages.\n"
        "sections: lists of ranges (file, offset, bytes, targets) that are needed together, in the "
        "order in which they are needed; if `endless`, the first follows the last again. targets: "
        "one for each slot, the same number in every range: a PackedMatrix of packed_room, or "
        "(Memory, offset). As many sections as there are slots are under way, ready or in use.\n"
        "threads: the threads that pack; 0 for as many as operations use. depth, piece_bytes: "
        "reads under way and bytes of each. direct: read past the page cache, where the file "
        "system allows that.\n"
        "io: \"auto\", which is io_uring if the kernel has it, or \"threads\".\n"
        "ValueError if the arguments do not fit together, OSError if a file cannot be used.");
    define_init(stream, make_stream, arg("files"), arg("sections"), py::kw_only(),
                arg("threads") = 0, arg("depth") = 10, arg("piece_bytes") = 1 << 20,
                arg("endless") = true, arg("direct") = true, arg("io") = "auto");
    stream
        .def("take", &PyStream::take,
             "Wait for the next section: (its index, its slot), valid until release().\n\n"
             "OSError, with file and offset, if a file cannot be read, is too short, or was "
             "changed; rewind() then starts anew. Ctrl-C ends the wait.")
        .def("release", &PyStream::release, "End the use of the section that was taken.")
        .def("rewind", &PyStream::rewind,
             "Start again from the first section, and forget what was read ahead. For an endless "
             "stream.")
        .def("push", &PyStream::push, arg("section"),
             "Add a section after the last, to a stream that is not endless. Such a stream may "
             "begin without sections and then has one slot.")
        .def("close", &PyStream::close,
             "End all reading at once. A read that hangs in the system ends later by itself.")
        .def("stats", &PyStream::stats,
             "bytes_read, bytes_taken (of sections handed over), disk_seconds (with a read under "
             "way), waited_for_disk_seconds (in take), waited_for_compute_seconds (nothing to "
             "read, all slots full), pack_seconds (of all threads), io, direct, depth, "
             "buffer_bytes.");
}

}  // namespace tensor_ops::bindings
