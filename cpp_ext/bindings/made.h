// Accepts objects of the extension's classes only if they are initialised.
//
// X.__new__(X), and a subclass's __init__ before super().__init__(), give objects that hold nothing
// yet.  pybind11 would treat them as memory of the C++ type.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

namespace tensor_ops::bindings {

// Converts a class from Python.  TypeError for an object that was never initialised.
template <class T>
class MadeCaster : public pybind11::detail::type_caster_base<T> {
    using Base = pybind11::detail::type_caster_base<T>;

 public:
    bool load(pybind11::handle source, bool convert) {
        return Base::template load_impl<MadeCaster>(source, convert);
    }
    // Only pybind11 calls it, from load_impl.
    void load_value(pybind11::detail::value_and_holder&& object) {
        if (!object.holder_constructed()) {
            const std::string type = Py_TYPE(reinterpret_cast<PyObject*>(object.inst))->tp_name;
            throw pybind11::type_error(type +
                                       ": the object was never initialised, so it holds nothing. "
                                       "Call the class, or super().__init__() in a subclass.");
        }
        Base::load_value(std::move(object));
    }
};

// Defines the __init__ of a class: what make(arguments) returns, by value or by pointer.  A second
// __init__ changes nothing, even if it came while `make` was at work: from another thread, or from
// Python code that an argument runs.
template <class Class, class Made, class... Args, class... Extra>
void define_init(Class& c, Made (*make)(Args...), const Extra&... extra) {
    c.def(
        "__init__",
        [make](pybind11::detail::value_and_holder& self, Args... args) {
            Made made = make(std::forward<Args>(args)...);
            if (!self.holder_constructed())
                pybind11::detail::initimpl::construct<Class>(self, std::move(made), false);
        },
        pybind11::detail::is_new_style_constructor(), extra...);
}

}  // namespace tensor_ops::bindings
