// SequenceState for Python, with the arrays that its pages lie in.
#pragma once

#include <map>
#include <stdexcept>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/made.h"
#include "graph/state.h"

namespace tensor_ops::bindings {

struct StateObject {
    SequenceState state;
    std::vector<std::map<std::size_t, py::object>> pages;  // of each table, by number
    py::object recurrent;
    int runs = 0;  // that read it now, without the GIL; it does not change meanwhile

    void check_idle() const {
        if (runs)
            throw std::runtime_error("SequenceState: a run uses it; change it after the run.");
    }
};

// Keeps a state as it is while the object lives.  Made and destroyed under the GIL.
class StateInUse {
 public:
    explicit StateInUse(StateObject& object) : object_(&object) { ++object.runs; }
    StateInUse(StateInUse&& other) noexcept : object_(other.object_) { other.object_ = nullptr; }
    StateInUse& operator=(StateInUse&&) = delete;
    ~StateInUse() {
        if (object_) --object_->runs;
    }

 private:
    StateObject* object_;
};

}  // namespace tensor_ops::bindings

namespace pybind11::detail {
template <>
class type_caster<tensor_ops::bindings::StateObject>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::bindings::StateObject> {};
}  // namespace pybind11::detail
