// Attention to a cache that is so long that it is divided: the results of its parts stay within the
// workspace, however wide they are and however many sequences share it.

#include "arrays.h"
#include "check.h"
#include "dispatch.h"
#include "ops/attention.h"

using namespace arrays;
using tensor_ops::AttentionCall;
using tensor_ops::DType;
using tensor_ops::Worker;

namespace {

// A run by one thread in a workspace behind which nobody may write.
void run(const AttentionCall& call) {
    Floats workspace(tensor_ops::attention_workspace_floats);
    const Worker alone(0, 1, nullptr);
    tensor_ops::attention(alone, tensor_ops::kernels(), call, workspace.data());
}

}  // namespace

// Parts of at least 512 positions, in which each head of a token has its 128 values and 2 floats.
TEST(a_sequence_takes_the_workspace_of_its_parts) {
    tensor_ops::KvCache cache;
    cache.n_kv_heads = 8;
    cache.head_dim = cache.value_dim = 128;
    const struct {
        std::size_t n_tokens, past, parts;
    } wanted[] = {{0, 5'000, 0}, {1, 511, 0},      {1, 512, 2},    {1, 1'023, 2}, {1, 1'024, 3},
                  {2, 1'023, 3}, {1, 100'000, 16}, {64, 1'000, 3}, {65, 1'000, 0}};
    for (const auto& [n_tokens, past, parts] : wanted)
        check::equal(tensor_ops::attention_floats(8, {n_tokens, past, cache}),
                     parts * 8 * n_tokens * 130, "floats");
}

// The workspace has room for 7 parts.  The window of the second case begins and ends in the middle
// of two of 8; the two sequences of the third share the room.
TEST(wide_results_of_many_queries_make_fewer_parts) {
    constexpr std::size_t n_q = 64, most = 16 * 512, dim = 576;
    Floats k = filled(most * dim, 0.0f), v = filled(most * dim, 2.0f);
    const Floats q = normal(2 * n_q * dim, 1);
    const std::int32_t q_starts[] = {0, n_q, 2 * n_q}, kv_starts[] = {0, most / 2, most};
    const struct {
        std::size_t n_sequences, n_kv, window;
    } cases[] = {{1, 12 * 512, 0}, {1, 15 * 256, 13 * 256 + 193}, {2, most, 0}};
    for (const auto& [n_sequences, n_kv, window] : cases) {
        Floats out(n_sequences * n_q * dim);
        AttentionCall call{.q = q.data(),
                           .n_q = n_sequences * n_q,
                           .n_heads = 1,
                           .cache = {k.data(), v.data(), DType::f32, 1, most, dim},
                           .n_kv = n_kv,
                           .scale = 1.0f,
                           .window = window,
                           .out = out.data()};
        if (n_sequences > 1) call.q_starts = q_starts, call.kv_starts = kv_starts;
        run(call);
        for (const float value : out) check::near("a mean", value, 2.0, 1e-5);
    }
}

TEST(sequences_of_one_cache_share_the_workspace) {
    constexpr std::size_t n_sequences = 4, n_kv = 4 * 512, dim = 16;
    Floats k = filled(n_sequences * n_kv * dim, 0.0f), v(n_sequences * n_kv * dim);
    for (std::size_t i = 0; i < v.size(); ++i)
        v[i] = static_cast<float>(i / (n_kv * dim));  // of each sequence its number
    const Floats q = normal(n_sequences * dim, 1);
    Floats out(n_sequences * dim);
    const std::int32_t q_starts[] = {0, 1, 2, 3, 4};
    std::int32_t kv_starts[n_sequences + 1];
    for (std::size_t i = 0; i <= n_sequences; ++i)
        kv_starts[i] = static_cast<std::int32_t>(i * n_kv);
    run({.q = q.data(),
         .n_q = n_sequences,
         .n_heads = 1,
         .cache = {k.data(), v.data(), DType::f32, 1, n_sequences * n_kv, dim},
         .n_kv = n_sequences * n_kv,
         .scale = 1.0f,
         .out = out.data(),
         .q_starts = q_starts,
         .kv_starts = kv_starts});
    for (std::size_t i = 0; i < out.size(); ++i)
        check::near("a mean", out[i], static_cast<double>(i / dim), 1e-5);
}
