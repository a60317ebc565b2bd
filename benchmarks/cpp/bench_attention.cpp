// Attention as Llama 3 8B has it: 32 query heads on 8 heads of keys and values, 128 dimensions.
#include <cmath>
#include <memory>

#include "bench.h"
#include "ops/ops.h"

namespace bench {
namespace {

using tensor_ops::DType;
using tensor_ops::KernelTable;
using tensor_ops::KvCache;
using tensor_ops::Worker;

constexpr std::size_t n_heads = 32, n_kv_heads = 8, head_dim = 128;

// n_q queries at the end of n_kv positions, in one of several caches.
void add_case(const std::string& name, DType type, std::size_t n_q, std::size_t n_kv,
              const Work& work) {
    struct Data {
        std::vector<std::byte> k, v;
        std::vector<float> q, out, workspace;
    };
    const std::size_t values = n_kv_heads * n_kv * head_dim;
    const std::size_t bytes = tensor_ops::row_bytes(type, values);
    const std::size_t copies = n_q == 1 ? cycles(2 * bytes) : 1;
    add(name, work, [=](const KernelTable& table) {
        auto data = std::make_shared<Data>();
        data->q = normal(n_q * n_heads * head_dim);
        data->out.resize(data->q.size());
        data->workspace.resize(tensor_ops::attention_workspace_floats);
        const std::vector<float> kv = normal(values);
        data->k.resize(copies * bytes);
        for (std::size_t i = 0; i < copies; ++i)
            table.from_float(type, kv.data(), data->k.data() + i * bytes, values);
        data->v = data->k;
        return [=, &table](const Worker& worker, std::size_t iteration) {
            const std::size_t at = iteration % copies * bytes;
            const KvCache cache{
                data->k.data() + at, data->v.data() + at, type, n_kv_heads, n_kv, head_dim};
            const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
            tensor_ops::attention(worker, table,
                                  {.q = data->q.data(),
                                   .n_q = n_q,
                                   .n_heads = n_heads,
                                   .cache = cache,
                                   .n_kv = n_kv,
                                   .scale = scale,
                                   .out = data->out.data()},
                                  data->workspace.data());
        };
    });
}

}  // namespace

void add_attention() {
    const double per_pair = 4.0 * n_heads * head_dim;  // operations
    for (const std::size_t n_kv : {512u, 2048u, 8192u})
        for (const DType type : {DType::f32, DType::f16}) {
            const std::size_t values = 2 * n_kv_heads * n_kv * head_dim;
            const auto bytes = static_cast<double>(tensor_ops::row_bytes(type, values));
            add_case("attention_decode_" + std::string(tensor_ops::dtype_name(type)) +
                         dimensions({n_kv}),
                     type, 1, n_kv, {Limit::read, bytes, per_pair * static_cast<double>(n_kv)});
        }
    for (const std::size_t n : {128u, 512u, 2048u}) {
        const double operations = per_pair * static_cast<double>(n * (n + 1) / 2);
        add_case("attention_prefill" + dimensions({n}), DType::f32, n, n,
                 {Limit::multiply_add, operations, operations});
    }
}

}  // namespace bench
