// Calls on a GPU: what is given to kernels, and their launches. Nothing here waits for the GPU.
#include <algorithm>

#include "flash_attention/cuda/append.h"
#include "flash_attention/cuda/backend.h"
#include "flash_attention/cuda/launch.h"
#include "flash_attention/cuda/results.h"
#include "flash_attention/tensor.h"

namespace tensor_ops::flash::cuda {
namespace {

// Fewer keys are not worth a split of their own.
constexpr std::size_t least_split = 256;
// Of a block that appends or combines one row.
constexpr int threads_of_row = 128;

// Chooses the device, and at its end again the one that the caller's thread had.
class Choice {
 public:
    explicit Choice(int device) {
        check(cudaGetDevice(&before_), "the device in use");
        check(cudaSetDevice(device), "choice of the device");
    }
    ~Choice() { cudaSetDevice(before_); }
    Choice(const Choice&) = delete;
    Choice& operator=(const Choice&) = delete;

 private:
    int before_ = 0;
};

// Kernels count in 32 bits.
int as_int(std::size_t n, const char* what) {
    if (n > INT32_MAX)
        refuse(FA_UNSUPPORTED, "the call has %zu %s; on a GPU up to %d", n, what, INT32_MAX);
    return static_cast<int>(n);
}

bool is_for(const Kernel& kernel, const Call& c) {
    return kernel.type == c.p.q.type &&
           static_cast<std::size_t>(kernel.head_dim) >= std::max(c.k_dim, c.value_dim);
}

void check_types(const Call& c) {
    const fa_fwd_params& p = c.p;
    if (p.q.type != FA_F16 && p.q.type != FA_BF16 && p.q.type != FA_E4M3)
        refuse(FA_UNSUPPORTED, "q.type is %s; on a GPU it is f16, bf16 or e4m3",
               type_names[p.q.type]);
    if (p.k.type != p.q.type)
        refuse(FA_UNSUPPORTED, "k.type is %s, and q.type %s; on a GPU both are the same",
               type_names[p.k.type], type_names[p.q.type]);
    if (c.appends && p.k_new.type != p.k.type)
        refuse(FA_UNSUPPORTED, "k_new.type is %s, and k.type %s; on a GPU both are the same",
               type_names[p.k_new.type], type_names[p.k.type]);
    if (is_there(p.q_v)) refuse(FA_UNSUPPORTED, "q_v is there; on a GPU it is not");
}

// The kernel for the smallest heads that hold the call's.
const Kernel& kernel_for(const Call& c) {
    check_types(c);
    const Kernel* best = nullptr;
    for (const BuiltKernel* k = BuiltKernel::first(); k; k = k->next)
        if (is_for(*k, c) && (!best || k->head_dim < best->head_dim)) best = k;
    if (!best)
        refuse(FA_NO_KERNEL, "this build has no kernel for heads of %zu elements of type %s",
               std::max(c.k_dim, c.value_dim), type_names[c.p.q.type]);
    return *best;
}

std::size_t tiles(const Call& c, const Kernel& kernel) {
    const auto rows = static_cast<std::size_t>(kernel.rows);
    return (c.most_queries * c.group + rows - 1) / rows;
}

// As many parts of the keys as give each multiprocessor two blocks, unless the call says how many.
int splits_of(int device, const Call& c, const Kernel& kernel) {
    if (c.p.num_splits > 0) return c.p.num_splits;
    int processors = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "number of multiprocessors");
    const std::size_t blocks = std::max<std::size_t>(tiles(c, kernel) * c.kv_heads * c.batch, 1);
    const std::size_t wanted = 2 * static_cast<std::size_t>(processors) / blocks;
    return static_cast<int>(
        std::clamp<std::size_t>(std::min(wanted, c.most_keys / least_split), 1, 256));
}

std::uint64_t partial_floats(const Call& c, int splits) {
    if (splits == 1) return 0;
    return static_cast<std::uint64_t>(splits) * c.total_queries * c.heads * (c.value_dim + 1);
}

// The strides of [..][row][head][element], in elements; of sequences only where t has them.
Rows rows(const fa_tensor& t) {
    if (!is_there(t)) return {};
    const int last = t.rank - 1;
    return {static_cast<unsigned char*>(t.data), t.rank == 4 ? t.stride[0] : 0, t.stride[last - 2],
            t.stride[last - 1]};
}

void put_descale(const fa_tensor& t, const float*& data, std::int64_t (&stride)[2]) {
    if (!is_there(t)) return;
    data = static_cast<const float*>(t.data);
    stride[0] = t.stride[0];
    stride[1] = t.stride[1];
}

int as_window(std::size_t keys) {
    return keys == unlimited_window ? -1 : static_cast<int>(std::min<std::size_t>(keys, INT32_MAX));
}

Arguments arguments_of(const Call& c, int splits) {
    const fa_fwd_params& p = c.p;
    Arguments a{};
    a.q = rows(p.q);
    a.k = rows(p.k);
    a.v = rows(p.v);
    a.out = rows(p.out);
    if (c.appends) {
        a.k_new = rows(p.k_new);
        a.v_new = rows(p.v_new);
        a.most_new = p.cu_seqlens_k_new ? 0 : as_int(size(p.k_new, 1), "new keys");
    }
    if (c.rotary_dim) {
        a.rotary_cos = static_cast<const unsigned char*>(p.rotary_cos.data);
        a.rotary_sin = static_cast<const unsigned char*>(p.rotary_sin.data);
        a.cos_row = p.rotary_cos.stride[0];
        a.sin_row = p.rotary_sin.stride[0];
        a.table_type = p.rotary_cos.type;
    }
    if (is_there(p.lse)) {
        a.lse = static_cast<float*>(p.lse.data);
        const int last = p.lse.rank - 1;
        a.lse_row = p.lse.stride[last];
        a.lse_head = p.lse.stride[last - 1];
        a.lse_batch = p.lse.rank == 3 ? p.lse.stride[0] : 0;
    }
    if (is_there(p.sinks)) a.sinks = static_cast<const float*>(p.sinks.data);
    put_descale(p.q_descale, a.q_descale, a.q_descale_stride);
    put_descale(p.k_descale, a.k_descale, a.k_descale_stride);
    put_descale(p.v_descale, a.v_descale, a.v_descale_stride);
    a.cu_seqlens_q = p.cu_seqlens_q;
    a.cu_seqlens_k = p.cu_seqlens_k;
    a.cu_seqlens_k_new = c.appends ? p.cu_seqlens_k_new : nullptr;
    a.seqused_q = p.seqused_q;
    a.seqused_k = p.seqused_k;
    a.page_table = c.page_size ? p.page_table : nullptr;
    a.page_table_stride = p.page_table_stride;
    a.kv_batch_idx = p.kv_batch_idx;
    a.leftpad_k = p.leftpad_k;
    a.seqlens_rotary = p.seqlens_rotary;
    a.total_queries = static_cast<std::int64_t>(c.total_queries);
    a.most_queries = as_int(c.most_queries, "queries");
    a.most_keys = as_int(c.most_keys, "keys");
    a.heads = as_int(c.heads, "heads");
    a.group = static_cast<int>(c.group);
    a.k_dim = static_cast<int>(c.k_dim);
    a.value_dim = static_cast<int>(c.value_dim);
    a.rotary_dim = static_cast<int>(c.rotary_dim);
    a.page_size = as_int(c.page_size, "positions in a page");
    a.left = as_window(c.left);
    a.right = as_window(c.right);
    a.chunk = as_int(c.chunk, "positions in a chunk");
    a.splits = splits;
    a.out_type = p.out.type;
    a.causal = c.causal;
    a.interleaved = p.flags & FA_ROTARY_INTERLEAVED;
    a.rotates_by_query = c.rotates_by_query();
    a.scale = c.scale;
    a.softcap = p.softcap;
    return a;
}

dim3 grid_of(std::size_t x, std::size_t y, std::size_t z) {
    if (x > INT32_MAX || y > 65535 || z > 65535)
        refuse(FA_UNSUPPORTED,
               "the call has %zu tiles of queries, %zu heads times splits, and %zu sequences; on a "
               "GPU up to %d, 65535 and 65535",
               x, y, z, INT32_MAX);
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

dim3 append_grid(const Call& c) {
    const std::size_t rows = c.p.cu_seqlens_k_new ? size(c.p.k_new, 0) : size(c.p.k_new, 1);
    return grid_of(rows, c.kv_heads, c.batch);
}

void append(const Call& c, const Arguments& a, dim3 grid, cudaStream_t stream) {
    if (grid.x == 0 || grid.z == 0) return;
    const auto kernel = c.p.k.type == FA_F16    ? append_kernel<Half>
                        : c.p.k.type == FA_BF16 ? append_kernel<Bfloat16>
                                                : append_kernel<E4m3>;
    launch(kernel, grid, threads_of_row, 0, stream, a);
}

}  // namespace

void open_device(int device) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        cudaGetLastError();  // the caller's next look at it is not to find this one
        refuse(FA_NO_DEVICE, "there is no CUDA device: %s", cudaGetErrorString(status));
    }
    if (device >= count)
        refuse(FA_NO_DEVICE, "device is \"cuda:%d\"; there are %d of them, from cuda:0 on", device,
               count);
}

std::uint64_t workspace_bytes(int device, const Call& call) {
    const Kernel& kernel = kernel_for(call);
    const std::uint64_t floats = partial_floats(call, splits_of(device, call, kernel));
    return floats ? floats * sizeof(float) + alignof(float) - 1 : 0;
}

void forward(int device, const Call& c, void* stream) {
    const Choice choice(device);
    const Kernel& kernel = kernel_for(c);
    const int splits = splits_of(device, c, kernel);
    Arguments a = arguments_of(c, splits);
    auto* const own = static_cast<cudaStream_t>(stream);
    // All that may be refused comes before anything is written.
    const dim3 new_rows = c.appends ? append_grid(c) : dim3(0, 0, 0);
    const dim3 blocks =
        grid_of(tiles(c, kernel), c.kv_heads * static_cast<std::size_t>(splits), c.batch);
    const dim3 combined = splits > 1 ? grid_of(c.most_queries, c.heads, c.batch) : dim3();
    append(c, a, new_rows, own);
    if (c.total_queries == 0 || c.most_queries == 0) return;
    if (splits > 1) {
        const auto address = reinterpret_cast<std::uintptr_t>(c.p.workspace);
        a.out_partial = reinterpret_cast<float*>((address + 3) & ~std::uintptr_t{3});
        a.lse_partial = a.out_partial + static_cast<std::uint64_t>(splits) * c.total_queries *
                                            c.heads * c.value_dim;
    }
    launch(kernel.function, blocks, kernel.threads, kernel.shared_bytes, own, a);
    if (splits > 1) launch(combine_splits_kernel<>, combined, threads_of_row, 0, own, a);
}

void append(int device, const Call& c, void* stream) {
    const Choice choice(device);
    check_types(c);
    append(c, arguments_of(c, 1), append_grid(c), static_cast<cudaStream_t>(stream));
}

std::string built_kernels() {
    std::string text = "; cuda:";
    for (const BuiltKernel* k = BuiltKernel::first(); k; k = k->next)
        text += std::string(" ") + k->name;
    return text;
}

}  // namespace tensor_ops::flash::cuda
