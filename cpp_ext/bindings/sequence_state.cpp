#include "bindings/sequence_state.h"

#include <memory>

#include "bindings/module.h"

namespace tensor_ops::bindings {
namespace {

using KeysArgument = std::tuple<std::size_t, std::size_t, std::size_t, std::string, std::size_t,
                                std::size_t, std::size_t>;
using OptionalKeys = std::optional<KeysArgument>;

std::optional<SequenceState::Keys> read_keys(const OptionalKeys& argument) {
    if (!argument) return {};
    const auto& [table, k_offset, v_offset, type, heads, head_dim, value_dim] = *argument;
    return SequenceState::Keys{
        table, k_offset, v_offset, dtype_argument({"SequenceState", "type", py::str(type)}),
        heads, head_dim, value_dim};
}

SequenceState::Layer read_layer(const py::object& item) {
    if (!py::isinstance<py::tuple>(item)) throw py::cast_error();
    const auto argument = py::reinterpret_borrow<py::tuple>(item);
    if (argument.size() < 4 || argument.size() > 7) throw py::cast_error();
    const auto keys = [&](std::size_t i) {
        return i < argument.size() ? read_keys(argument[i].cast<OptionalKeys>()) : std::nullopt;
    };
    return {keys(0),
            argument[1].cast<std::size_t>(),
            argument[2].cast<std::size_t>(),
            keys(3),
            keys(4),
            keys(5),
            keys(6)};
}

std::unique_ptr<StateObject> make_state(const py::sequence& tables, const py::sequence& layers) {
    std::vector<SequenceState::PageSize> pages;
    std::vector<SequenceState::Layer> read;
    try {
        for (const py::object item : tables) {
            const auto [rows, bytes] = item.cast<std::pair<std::size_t, std::size_t>>();
            pages.push_back({rows, bytes});
        }
        for (const py::object item : layers) read.push_back(read_layer(item));
    } catch (const py::cast_error&) {
        throw py::type_error(
            "SequenceState: tables or layers are not as expected: (page_rows, page_bytes), and "
            "(keys, "
            "recurrent_first, recurrent_floats, index) each, and perhaps groups, pending and "
            "index_pending, with all of these but the floats (table, k_offset, v_offset, type, "
            "n_kv_heads, head_dim, value_dim) or None.");
    }
    const std::vector<std::map<std::size_t, py::object>> none(pages.size());
    return std::make_unique<StateObject>(StateObject{{pages, std::move(read)}, none, {}});
}

// The array's memory, which the caller lets the state write to.
template <class T>
std::span<T> writable(const char* name, py::handle value, Dtype dtype) {
    const Array array({"SequenceState", name, value}, {dtype});
    array.require_axes(1, "[n]");
    if (!array.handle().writeable())
        value_error(std::string("SequenceState: ") + name + " is read-only.");
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float))
        value_error(std::string("SequenceState: ") + name + " is not aligned to 4 bytes.");
    return {static_cast<T*>(const_cast<void*>(array.data())), array.size()};
}

void set_page(StateObject& self, std::size_t table, std::size_t index, const py::object& page) {
    const std::span<std::byte> memory = writable<std::byte>("page", page, Dtype::uint8);
    self.check_idle();
    self.state.set_page(table, index, memory);
    py::object old = page;
    std::swap(self.pages[table][index], old);  // which may run Python code when it goes, in the end
}

void keep_pages(StateObject& self, std::size_t table, std::size_t first, std::size_t last) {
    self.check_idle();
    self.state.keep_pages(table, first, last);
    std::vector<py::object> gone;
    auto& pages = self.pages[table];
    for (auto page = pages.begin(); page != pages.end();) {
        const bool stays = page->first >= first && page->first < last;
        if (!stays) gone.push_back(std::move(page->second));
        page = stays ? std::next(page) : pages.erase(page);
    }
}

void set_recurrent(StateObject& self, const py::object& memory) {
    const std::span<float> floats = writable<float>("memory", memory, Dtype::float32);
    self.check_idle();
    self.state.set_recurrent(floats);
    py::object old = memory;
    std::swap(self.recurrent, old);
}

}  // namespace

void bind_sequence_state(py::module_& m) {
    using py::arg;
    py::class_<StateObject> state(
        m, "SequenceState",
        "What a sequence keeps between tokens: pages of keys and values, and the memory of "
        "recurrent ops. The caller gives the memory; see airllm.state.\n\n"
        "tables: (page_rows, page_bytes) of each: the positions of a page, a power of 2 from 16 "
        "on, "
        "and its bytes.\n"
        "layers: (keys, recurrent_first, recurrent_floats, index) of each, and perhaps groups, "
        "pending and index_pending. keys: None, or (table, "
        "k_offset, v_offset, type, n_kv_heads, head_dim, value_dim): each page of the table has "
        "the keys, [n_kv_heads, page_rows, head_dim] of 'f32', 'f16' or 'q8_0', at byte k_offset, "
        "and the values at v_offset; with equal offsets, the values are the first dimensions of "
        "the keys. recurrent_first: in floats. index: the same of keys that select positions; it "
        "has no values. groups: of keys that several positions have together. pending, "
        "index_pending: of values, and of scores in place of values, that groups, and keys of the "
        "index, are made of.\n"
        "ValueError if a layer does not fit its pages.");
    define_init(state, make_state, arg("tables"), arg("layers"));
    state
        .def("set_page", &set_page, arg("table"), arg("index"), arg("page"),
             "Set a page, uint8 [n]: one that the table has, or the next one; the first page of an "
             "empty table may have any number. RuntimeError during a run.")
        .def("keep_pages", &keep_pages, arg("table"), arg("first"), arg("last"),
             "Let go all pages of a table but those from `first` up to `last`, without it.")
        .def("set_recurrent", &set_recurrent, arg("memory"),
             "Set the recurrent memory of all layers, float32 [recurrent_floats].")
        .def_property_readonly("recurrent_floats", [](const StateObject& self) {
            return self.state.recurrent_floats();
        });
}

}  // namespace tensor_ops::bindings
