#include "graph/executor.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#include "dispatch.h"
#include "graph/run.h"

namespace tensor_ops {

float* Executor::buffer(int index, const Batch& batch) const {
    const auto b = static_cast<std::size_t>(index);
    if (graph_.buffers[b].external) return static_cast<float*>(batch.external[b]);
    // Offsets scale with n_tokens: the buffers of a small batch lie close together, and the rest of
    // the arena is never touched.
    return reinterpret_cast<float*>(arena_.data()) + offsets_[b] * batch.n_tokens;
}

namespace {

std::string shape_in_words(std::size_t heads, std::size_t head_dim, std::size_t value_dim) {
    return std::to_string(heads) + " heads of " + std::to_string(head_dim) +
           (value_dim == head_dim ? "" : " with values of " + std::to_string(value_dim));
}

// Checks that an op's keys and values fit what a sequence keeps of them.
void check_cache(const Graph& graph, const Op& op, const CachedSequence& sequence) {
    const KvCache& cache = sequence.cache;
    if (!cache.exists()) throw std::invalid_argument("this graph needs keys and values");
    const std::size_t own = graph.value_dim(op), value_dim = own ? own : cache.value_dim;
    const std::size_t n_kv_heads = attends_groups(op.kind) ? 1 : op.n_kv_heads;
    if (cache.n_kv_heads != n_kv_heads || cache.head_dim != op.head_dim ||
        cache.value_dim != value_dim)
        throw std::invalid_argument(
            "the KV cache has " +
            shape_in_words(cache.n_kv_heads, cache.head_dim, cache.value_dim) + ", expected " +
            shape_in_words(n_kv_heads, op.head_dim, value_dim));
    if (appends_keys(op.kind) && cache.values_in_keys() != (op.kind == OpKind::latent_append))
        throw std::invalid_argument(std::string("the values are in the keys ") +
                                    (cache.values_in_keys() ? "of the cache" : "of the op") +
                                    ", and not in the other's");
    const std::size_t first =
        appends_keys(op.kind) ? sequence.past : first_seen(op.window, op.chunked, sequence.past);
    if (sequence.n_tokens && first < cache.first)
        throw std::invalid_argument("position " + std::to_string(first) +
                                    " is needed, and the KV cache begins at " +
                                    std::to_string(cache.first));
    if (sequence.past > cache.capacity || sequence.n_tokens > cache.capacity - sequence.past)
        throw std::invalid_argument(
            std::to_string(sequence.past) + " + " + std::to_string(sequence.n_tokens) +
            " positions do not fit the KV cache of " + std::to_string(cache.capacity));
}

// Checks that an op's keys fit the index, or the groups, that a sequence keeps.
void check_index(const Op& op, const CachedSequence& sequence, const KvCache& keys,
                 const std::string& what) {
    // A sequence without a whole group has no page for its groups.
    if (!keys.n_kv_heads)
        throw std::invalid_argument(op.kind == OpKind::group_append || attends_groups(op.kind)
                                        ? "this graph needs keys of groups"
                                        : "this graph needs an index");
    if (keys.n_kv_heads != 1 || keys.head_dim != op.head_dim)
        throw std::invalid_argument(what + " has " +
                                    shape_in_words(keys.n_kv_heads, keys.head_dim, keys.head_dim) +
                                    ", expected 1 heads of " + std::to_string(op.head_dim));
    const std::size_t every = op.pooled ? op.block_size : op.every;
    const std::size_t most = std::min(keys.capacity, most_indexed);
    const std::size_t end = most * every + every - 1;
    if (sequence.past > end || sequence.n_tokens > end - sequence.past)
        throw std::invalid_argument(std::to_string(sequence.past) + " + " +
                                    std::to_string(sequence.n_tokens) + " positions do not fit " +
                                    what + " of " + std::to_string(most));
    if (sequence.n_tokens && keys.first > 0)
        throw std::invalid_argument(what + " begins at position " + std::to_string(keys.first) +
                                    ", and not at 0");
}

void check_groups(const Op& op, const CachedSequence& sequence) {
    check_index(op, sequence, sequence.groups, "the keys of groups");
    if (attends_groups(op.kind) &&
        (sequence.groups.type != sequence.cache.type || !sequence.cache.values_in_keys()))
        throw std::invalid_argument("the keys of groups are no keys as the others");
}

// Checks what groups are made of.
void check_pending(const Graph& graph, const Op& op, const CachedSequence& s) {
    const KvCache& pending = op.of_index ? s.index_pending : s.pending;
    const std::size_t width = graph.buffers[static_cast<std::size_t>(op.output)].width;
    if (!pending.exists()) throw std::invalid_argument("this graph needs tokens for groups");
    if (pending.type != DType::f32 || pending.n_kv_heads != op.n_parts ||
        pending.head_dim != width || pending.value_dim != width || pending.values_in_keys())
        throw std::invalid_argument("tokens for groups do not fit the op, or are not f32");
    if (s.past > pending.capacity || s.n_tokens > pending.capacity - s.past)
        throw std::invalid_argument(std::to_string(s.past) + " + " + std::to_string(s.n_tokens) +
                                    " positions do not fit the tokens for groups, " +
                                    std::to_string(pending.capacity));
    const std::size_t group = s.past / op.every, before = std::min(group, op.n_parts - 1);
    const std::size_t first = (group - before) * op.every;
    if (s.n_tokens && first < pending.first)
        throw std::invalid_argument("position " + std::to_string(first) +
                                    " is needed, and tokens for groups begin at " +
                                    std::to_string(pending.first));
}

}  // namespace

void Executor::check_sequences(const Op& op, const Layer& layer) const {
    for (const CachedSequence& sequence : layer.sequences) {
        check_cache(graph_, op, sequence);
        if (sequence.cache.type != layer.sequences[0].cache.type)
            throw std::invalid_argument("the sequences' KV caches are of different types");
    }
}

void Executor::check_tokens(const Layer& layer, std::size_t n_tokens) const {
    std::size_t found = 0;
    for (const CachedSequence& sequence : layer.sequences) {
        found += sequence.n_tokens;
        if (sequence.recurrent.size() < recurrent_floats_)
            throw std::invalid_argument(
                "the recurrent memory has " + std::to_string(sequence.recurrent.size()) +
                " floats; this graph needs " + std::to_string(recurrent_floats_));
    }
    if (found != n_tokens)
        throw std::invalid_argument("the sequences have " + std::to_string(found) +
                                    " tokens, and the batch has " + std::to_string(n_tokens));
}

std::int32_t* Executor::ids(std::size_t op) const {
    return reinterpret_cast<std::int32_t*>(ids_.data()) + embeds_before_[op] * max_tokens_;
}

// Checks that no two external buffers overlap in part if an op writes one of them.  They may be the
// same memory: an elementwise op then overwrites its input.
void Executor::check_external(const Batch& batch) const {
    const auto begin = [&](std::size_t b) {
        return static_cast<const std::byte*>(batch.external[b]);
    };
    const auto end = [&](std::size_t b) { return begin(b) + external_bytes_[b] * batch.n_tokens; };
    const std::size_t n = graph_.buffers.size();
    for (std::size_t a = 0; a < n; ++a)
        for (std::size_t b = 0; b < n; ++b) {
            if (a == b || !external_bytes_[a] || !external_bytes_[b] || !written_[b]) continue;
            if (begin(a) == begin(b) && end(a) == end(b)) continue;
            if (std::less<>()(begin(a), end(b)) && std::less<>()(begin(b), end(a)))
                throw std::invalid_argument("buffers '" + graph_.buffers[a].name + "' and '" +
                                            graph_.buffers[b].name + "' overlap, and '" +
                                            graph_.buffers[b].name +
                                            "' is written; expected separate arrays");
        }
}

void Executor::check_layer(const Layer& layer, const Batch& batch) const {
    bool keeps = recurrent_floats_ > 0;
    for (const Op& op : graph_.ops)
        keeps |= uses_keys(op.kind) || uses_index(op.kind) || op.kind == OpKind::pool_groups;
    if (keeps) check_tokens(layer, batch.n_tokens);
    for (std::size_t i = 0; i < graph_.ops.size(); ++i) {
        const Op& op = graph_.ops[i];
        if (attends_groups(op.kind) || op.kind == OpKind::group_append)
            for (const CachedSequence& sequence : layer.sequences) check_groups(op, sequence);
        if (uses_keys(op.kind)) {
            check_sequences(op, layer);
        } else if (uses_index(op.kind)) {
            for (const CachedSequence& sequence : layer.sequences)
                check_index(op, sequence, sequence.index, "the index");
        } else if (op.kind == OpKind::pool_groups) {
            for (const CachedSequence& sequence : layer.sequences)
                check_pending(graph_, op, sequence);
        } else if (op.kind == OpKind::layer_columns) {
            const auto width = [&](int b) {
                return graph_.buffers[static_cast<std::size_t>(b)].width;
            };
            const std::size_t layers = width(op.inputs[0]) / width(op.output);
            if (layer.number >= layers)
                throw std::invalid_argument(
                    "'" + graph_.buffers[static_cast<std::size_t>(op.inputs[0])].name +
                    "' has the columns of " + std::to_string(layers) +
                    " layers, and none of layer " + std::to_string(layer.number));
        } else if (op.kind == OpKind::embed) {
            const auto& rows =
                std::get<RawRows>((*layer.weights)[static_cast<std::size_t>(op.weight)]);
            const std::int32_t* checked = ids(i);
            for (std::size_t t = 0; t < batch.n_tokens; ++t)
                // A negative number is beyond 2^63 as std::size_t.
                if (static_cast<std::size_t>(checked[t]) >= rows.n)
                    throw std::invalid_argument("token " + std::to_string(checked[t]) +
                                                " is not in the vocabulary of " +
                                                std::to_string(rows.n));
        }
    }
}

void Executor::run(std::span<const Layer> layers, const Batch& batch) {
    if (batch.n_tokens > max_tokens_)
        throw std::invalid_argument("n_tokens is " + std::to_string(batch.n_tokens) +
                                    "; this executor takes up to " + std::to_string(max_tokens_));
    for (std::size_t i = 0; i < graph_.ops.size(); ++i)
        if (const Op& op = graph_.ops[i]; op.kind == OpKind::embed)
            std::copy_n(static_cast<const std::int32_t*>(
                            batch.external[static_cast<std::size_t>(op.inputs[0])]),
                        batch.n_tokens, ids(i));
    std::size_t parts = 0, longest = 0;
    for (const Layer& layer : layers) {
        check_layer(layer, batch);
        parts = std::max(parts, parts_bytes(graph_, layer.sequences));
        for (const CachedSequence& s : layer.sequences)
            longest = std::max(longest, s.past + s.n_tokens);
    }
    check_external(batch);
    if (batch.n_tokens == 0) return;
    const GrowingMemory needed = growing_memory(graph_, batch.n_tokens, longest);
    for (const auto& [memory, bytes] :
         {std::pair{&parts_, parts}, {&scores_, needed.scores}, {&sparse_, needed.sparse}})
        if (memory->size() < bytes) *memory = AlignedBytes(bytes);
    const KernelTable& table = kernels();
    run_team(
        [&](const Worker& worker) {
            for (const Layer& layer : layers) {
                if (&layer != layers.data()) worker.barrier();
                Run run{*this, layer, batch, table, worker};
                if (batch.seconds.empty())
                    run.all();
                else
                    run.timed();
            }
            if (worker.index() == 0) meetings_ = worker.barriers();
        },
        batch.max_threads, joining(batch.n_tokens));
}

}  // namespace tensor_ops
