// A pair of arrays of keys and values, for attention and the executor.
#pragma once

#include "bindings/arrays.h"
#include "ops/attention.h"

namespace tensor_ops::bindings {

// float32 or float16 [n_kv_heads, positions, head_dim], or rows of q8_0 as uint8 [n_kv_heads,
// positions, head_dim / 32 * 34].  Throws py::type_error unless k and v are arrays of one type.
struct KvArrays {
    KvArrays(const Argument& k_argument, const Argument& v_argument);
    // Throws py::value_error unless k has the 3 axes that `axes` names, and v has k's shape.
    void require_axes(const char* axes) const;
    KvCache cache() const;

    Array k, v;
};

}  // namespace tensor_ops::bindings
