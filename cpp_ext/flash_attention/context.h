// Contexts, and the way in and out of the library: no exception leaves a call.
#pragma once

#include <new>

#include "flash_attention/flash_attn.h"
#include "flash_attention/refusal.h"
#include "kernels.h"

struct fa_context {
    int threads;                           // of a CPU
    const tensor_ops::KernelTable* table;  // for the CPU; null: a GPU
    int gpu;                               // its number
};

namespace tensor_ops::flash {

// Keeps a status and its reason for this thread; returns the status.
fa_status remember(fa_status status, const char* reason);

// Runs f and returns its status: FA_OK, or what its exception stands for.
fa_status status_of_exception();
template <class F>
fa_status guarded(F&& f) noexcept {
    try {
        f();
        return remember(FA_OK, "");
    } catch (...) {
        return status_of_exception();
    }
}

// Refuses a context that is null, and a stream where the device is a CPU, which has none.
const fa_context& checked(const fa_context* context, const void* stream);

}  // namespace tensor_ops::flash
