// The functions of flash_attn.h that compute.
#include <cstdio>

#include "flash_attention/call.h"
#include "flash_attention/combine.h"
#include "flash_attention/context.h"
#include "flash_attention/cuda/backend.h"
#include "flash_attention/divide.h"
#include "flash_attention/forward.h"

using namespace tensor_ops::flash;

namespace {

std::size_t workspace_bytes(const fa_context& context, const Call& call) {
    if (!context.table) return cuda::workspace_bytes(context.gpu, call);
    return workspace_of(call, static_cast<std::size_t>(context.threads),
                        context.table->attention_scratch_floats)
        .bytes;
}

}  // namespace

fa_status fa_fwd(fa_context* context, const fa_fwd_params* params, void* stream) {
    return guarded([&] {
        const fa_context& own = checked(context, stream);
        const Call call = checked_call(params, Use::forward);
        const std::size_t needed = workspace_bytes(own, call);
        if (needed) check_workspace(call, needed);
        if (!own.table) return cuda::forward(own.gpu, call, stream);
        check_arrays(call);
        forward(*own.table, own.threads, call);
    });
}

fa_status fa_fwd_workspace(fa_context* context, const fa_fwd_params* params, uint64_t* bytes) {
    return guarded([&] {
        const fa_context& own = checked(context, nullptr);
        if (!bytes) refuse(FA_INVALID, "bytes is NULL; expected where to put their number");
        *bytes = 0;
        *bytes = workspace_bytes(own, checked_call(params, Use::forward));
    });
}

fa_status fa_supported(fa_context* context, const fa_fwd_params* params, char* reason, size_t n) {
    const fa_status status = guarded([&] {
        const fa_context& own = checked(context, nullptr);
        const Call call = checked_call(params, Use::forward);
        workspace_bytes(own, call);
        if (own.table) check_arrays(call);  // a GPU's lie in its own memory
    });
    if (reason && n) std::snprintf(reason, n, "%s", fa_last_error());
    return status;
}

fa_status fa_kv_append(fa_context* context, const fa_fwd_params* params, void* stream) {
    return guarded([&] {
        const fa_context& own = checked(context, stream);
        const Call call = checked_call(params, Use::append);
        if (!own.table) return cuda::append(own.gpu, call, stream);
        check_arrays(call);
        append(*own.table, own.threads, call);
    });
}

fa_status fa_combine(fa_context* context, const fa_combine_params* params, void* stream) {
    return guarded([&] {
        const fa_context& own = checked(context, stream);
        if (!own.table) refuse(FA_UNSUPPORTED, "fa_combine needs a context of the CPU");
        combine(*own.table, own.threads, params);
    });
}
