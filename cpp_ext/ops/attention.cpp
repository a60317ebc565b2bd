#include "ops/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "ops/ops.h"

namespace tensor_ops {
namespace {

// A number of pieces of work that is enough for any number of threads.
constexpr std::size_t wanted_pieces = 128;
// If there are several runs, the last one has more rows than this.  A run of so few rows would read
// all of K and V for itself, and by another kernel.
constexpr std::size_t fewest_last_rows = 32;

struct Sequence {
    std::size_t q_first, n_q, kv_first, n_kv;
    const KvCache& cache;

    // Those of the cache from the sequence's first on.
    KvRows from_first(KvRows rows) const {
        if (kv_first) rows.rows = rows.row(kv_first);  // several sequences in one cache: no pages
        return rows;
    }
};

std::size_t n_sequences(const AttentionCall& call) {
    if (!call.sequences.empty()) return call.sequences.size();
    return call.q_starts.empty() ? 1 : call.q_starts.size() - 1;
}

// The i-th sequence, whose queries begin at q_first.
Sequence sequence(const AttentionCall& call, std::size_t i, std::size_t q_first) {
    if (!call.sequences.empty()) {
        const CachedSequence& s = call.sequences[i];
        return {q_first, s.n_tokens, 0, s.past + s.n_tokens, s.cache};
    }
    if (call.q_starts.empty()) return {0, call.n_q, 0, call.n_kv, call.cache};
    const auto q = static_cast<std::size_t>(call.q_starts[i]);
    const auto kv = static_cast<std::size_t>(call.kv_starts[i]);
    return {q, static_cast<std::size_t>(call.q_starts[i + 1]) - q, kv,
            static_cast<std::size_t>(call.kv_starts[i + 1]) - kv, call.cache};
}

AttentionTask task_of(const AttentionCall& call, const Sequence& s, std::size_t head) {
    const KvCache& cache = s.cache;
    const std::size_t group = call.n_heads / cache.n_kv_heads;
    const std::size_t q_stride = call.n_heads * cache.head_dim;
    const std::size_t out_stride = call.n_heads * cache.value_dim;
    return {
        .q = call.q + s.q_first * q_stride + head * group * cache.head_dim,
        .q_stride = q_stride,
        .k = s.from_first(cache.keys(head)),
        .v = s.from_first(cache.values(head)),
        .kv_type = kv_type_of(cache.type),
        .n_q = s.n_q,
        .group = group,
        .n_kv = s.n_kv,
        .head_dim = cache.head_dim,
        .value_dim = cache.value_dim,
        .scale = call.scale,
        .causal = call.causal,
        .window = call.window,
        .chunked = call.chunked,
        .softcap = call.softcap,
        .sinks = call.sinks ? call.sinks + head * group : nullptr,
        .slopes = call.slopes ? call.slopes + head * group : nullptr,
        .out = call.out + s.q_first * out_stride + head * group * cache.value_dim,
        .out_stride = out_stride,
        .lse = call.lse ? call.lse + s.q_first * call.n_heads + head * group : nullptr,
        .lse_stride = call.n_heads,
    };
}

// The division of the work on one sequence: of the query rows of each KV head into runs and, if
// that makes too few pieces, of the positions into parts.
struct Division {
    std::size_t rows, runs, parts;
    AttentionParts layout;    // if there are several parts, for the first head
    std::size_t stretch = 1;  // parts of a head that come before the next head's

    // The first row of a run: after whole tiles, or earlier for a last run that would be too small.
    std::size_t run_begin(std::size_t run) const {
        const std::size_t begin = std::min(run * attention_query_tile, rows);
        const bool small = run > 0 && run + 1 == runs && rows - begin <= fewest_last_rows;
        return small ? begin - fewest_last_rows : begin;
    }
};

std::size_t part_floats(std::size_t n_heads, std::size_t n_q, std::size_t value_dim) {
    return n_heads * n_q * (value_dim + 2);
}

// `sharers` sequences share the wanted pieces, and each may take `room` floats of the workspace.
std::size_t most_parts(std::size_t n_heads, std::size_t n_kv_heads, std::size_t n_q,
                       std::size_t value_dim, std::size_t sharers, std::size_t room) {
    if (n_q == 0 || n_q > most_divided_queries) return 1;
    const std::size_t runs = divide_up(n_q * (n_heads / n_kv_heads), attention_query_tile);
    return std::clamp<std::size_t>(
        room / part_floats(n_heads, n_q, value_dim), 1,
        std::max<std::size_t>(1, wanted_pieces / (n_kv_heads * runs * sharers)));
}

// Whether the next head's part of so many positions comes before a head's next part: in a page the
// next head's rows follow those of a head, and the CPU reads ahead beyond these.  Out of the
// caches, heads of 128 then take 7% less time in F32 and 3% less in F16.
bool heads_take_turns(const KvCache& cache, std::size_t positions) {
    const KvRows keys = cache.keys(0);
    return cache.n_kv_heads > 1 && keys.pages && std::size_t{1} << keys.page_bits < positions &&
           keys.row_bytes << keys.page_bits >= 8192;
}

// This sequence has `room` floats of the workspace.
Division divide(const AttentionCall& call, const Sequence& s, std::size_t sharers, float* workspace,
                std::size_t room) {
    const std::size_t heads = s.cache.n_kv_heads, rows = s.n_q * (call.n_heads / heads);
    Division d{rows, divide_up(rows, attention_query_tile), 1, {}};
    if (rows == 0) return d;
    const std::size_t most =
        call.undivided ? 1
                       : most_parts(call.n_heads, heads, s.n_q, s.cache.value_dim, sharers, room);
    // Positions that no query sees lie before those that the first one sees.
    const std::size_t low =
        s.n_kv > s.n_q ? first_seen(call.window, call.chunked, s.n_kv - s.n_q) : 0;
    const std::size_t units = divide_up(s.n_kv - low, attention_part_unit);
    for (std::size_t size = std::max<std::size_t>(1, divide_up(units, most));; ++size) {
        const std::size_t positions = size * attention_part_unit, first = low / positions;
        d.parts = std::max<std::size_t>(1, divide_up(s.n_kv, positions) - first);
        d.layout = {positions, first, workspace,
                    part_floats(call.n_heads, s.n_q, s.cache.value_dim)};
        if (d.parts > most) continue;
        d.stretch = heads_take_turns(s.cache, positions) ? 1 : d.parts;
        return d;
    }
}

// Calls f(sequence, division) for each sequence, with its share of the workspace.
template <class F>
void for_sequences(const AttentionCall& call, float* workspace, F&& f) {
    const std::size_t count = n_sequences(call), sharers = call.sequences.empty() ? count : 1;
    const std::size_t room = attention_workspace_floats / sharers;
    for (std::size_t i = 0, q_first = 0; i < count; ++i) {
        const Sequence s = sequence(call, i, q_first);
        f(s, divide(call, s, sharers, workspace, room));
        workspace +=
            call.sequences.empty() ? room : attention_floats(call.n_heads, call.sequences[i]);
        q_first += s.n_q;
    }
}

AttentionParts parts_of(const Sequence& s, const Division& d, std::size_t head) {
    AttentionParts parts = d.layout;
    parts.data += head * d.rows * (s.cache.value_dim + 2);
    return parts;
}

// Sets the keys that are read after this stretch of parts of this head: mostly the next head's.
void fetch_next(AttentionTask& task, const Sequence& s, const Division& d, std::size_t part,
                std::size_t head) {
    const bool last = head + 1 == s.cache.n_kv_heads;
    const std::size_t next_part = last ? part + d.stretch : part;
    if (next_part >= d.parts) return;
    task.next = s.from_first(s.cache.keys(last ? 0 : head + 1));
    task.next_from = (d.layout.first + next_part) * d.layout.positions;
}

// The positions that query token t of a sequence sees.
std::size_t seen_positions(const AttentionCall& call, const Sequence& s, std::size_t t) {
    const auto signed_size = [](std::size_t n) { return static_cast<std::ptrdiff_t>(n); };
    const std::ptrdiff_t n_kv = signed_size(s.n_kv), p = n_kv - signed_size(s.n_q) + signed_size(t);
    const std::ptrdiff_t window = signed_size(std::min(call.window, s.n_q + s.n_kv));
    std::ptrdiff_t begin = 0, end = n_kv;
    if (call.window && call.chunked) {
        if (p < 0) return 0;
        begin = p - p % window;
        end = begin + window;
    } else if (call.window) {
        begin = p - window + 1;
        end = p + window;
    }
    if (call.causal) end = p + 1;
    const std::ptrdiff_t seen = std::min(end, n_kv) - std::max<std::ptrdiff_t>(begin, 0);
    return static_cast<std::size_t>(std::max<std::ptrdiff_t>(seen, 0));
}

// For head_dim 0: every score is 0, and only lse has values.  K and V take no memory, so there may
// be any number of positions: they are counted, not visited.
void attention_without_features(const Worker& worker, const AttentionCall& call) {
    if (!call.lse) return;
    for (std::size_t i = 0; i < n_sequences(call); ++i) {
        const Sequence s = sequence(call, i, 0);
        for_rows(worker, s.n_q, call.n_heads, [&](std::size_t first, std::size_t count) {
            for (std::size_t t = first; t < first + count; ++t)
                for (std::size_t head = 0; head < call.n_heads; ++head) {
                    const double ones = std::log(static_cast<double>(seen_positions(call, s, t)));
                    const double sink =
                        call.sinks ? static_cast<double>(call.sinks[head]) : -HUGE_VAL;
                    const double top = std::max(ones, sink);
                    const double sum = std::exp(ones - top) + std::exp(sink - top);
                    call.lse[(s.q_first + t) * call.n_heads + head] =
                        static_cast<float>(top == -HUGE_VAL ? top : top + std::log(sum));
                }
        });
    }
}

}  // namespace

std::vector<float> alibi_slopes(std::size_t n_heads, float largest) {
    const std::size_t power = std::bit_floor(n_heads);
    std::vector<float> slopes(n_heads);
    for (std::size_t h = 0; h < n_heads; ++h) {
        const auto step = static_cast<double>(h < power ? h + 1 : 2 * (h - power) + 1);
        const auto steps = static_cast<double>(h < power ? power : 2 * power);
        slopes[h] = static_cast<float>(std::exp2(-static_cast<double>(largest) * step / steps));
    }
    return slopes;
}

void kv_append(const Worker& worker, const KernelTable& table, const float* k, const float* v,
               std::size_t n_tokens, std::size_t past, const KvCache& cache) {
    const std::size_t heads = cache.n_kv_heads;
    for_rows(worker, n_tokens, heads * cache.head_dim, [&](std::size_t first, std::size_t count) {
        for (std::size_t t = first; t < first + count; ++t)
            write_kv(table, k + t * heads * cache.head_dim, v ? v + t * heads * cache.value_dim : v,
                     past + t, cache);
    });
}

void write_kv(const KernelTable& table, const float* k, const float* v, std::size_t position,
              const KvCache& cache) {
    const auto write = [&](const float* x, const KvRows& rows, std::size_t n) {
        // KvRows has pointers to const, as attention only reads.
        table.from_float(cache.type, x, const_cast<std::byte*>(rows.row(position)), n);
    };
    for (std::size_t head = 0; head < cache.n_kv_heads; ++head) {
        write(k + head * cache.head_dim, cache.keys(head), cache.head_dim);
        if (v) write(v + head * cache.value_dim, cache.values(head), cache.value_dim);
    }
}

std::size_t attention_floats(std::size_t n_heads, const CachedSequence& s) {
    const KvCache& cache = s.cache;
    const std::size_t most = most_parts(n_heads, cache.n_kv_heads, s.n_tokens, cache.value_dim, 1,
                                        attention_workspace_floats);
    const std::size_t parts = std::min(most, divide_up(s.past + s.n_tokens, attention_part_unit));
    return parts > 1 ? parts * part_floats(n_heads, s.n_tokens, cache.value_dim) : 0;
}

void attention(const Worker& worker, const KernelTable& table, const AttentionCall& call,
               float* workspace) {
    if (call.n_heads == 0 || (call.n_q == 0 && call.sequences.empty())) return;
    if (call.sequences.empty() && call.cache.head_dim == 0)
        return attention_without_features(worker, call);
    auto* scratch =
        static_cast<float*>(thread_scratch(table.attention_scratch_floats * sizeof(float)));
    const KvCache& shape = call.sequences.empty() ? call.cache : call.sequences[0].cache;
    const std::size_t heads = shape.n_kv_heads;
    std::size_t pieces = 0, merged_rows = 0;
    for_sequences(call, workspace, [&](const Sequence&, const Division& d) {
        pieces += d.runs * heads * d.parts;
        if (d.parts > 1) merged_rows += heads * d.rows;
    });
    // Whole runs are dealt one by one, as those of later queries are larger.  Parts are dealt in
    // stretches, as memory is best read in order.
    Deal deal(worker, pieces, 1, merged_rows ? pieces : 1);
    std::size_t at = 0;  // pieces before this one
    for_sequences(call, workspace, [&](const Sequence& s, const Division& d) {
        for (std::size_t run = 0; run < d.runs; ++run) {
            const std::size_t first = d.run_begin(run), last = d.run_begin(run + 1);
            for (std::size_t part = 0; part < d.parts; part += d.stretch)
                for (std::size_t head = 0; head < heads; ++head, at += d.stretch)
                    deal.within(at, at + d.stretch, [&](std::size_t from, std::size_t to) {
                        const std::size_t begin = d.layout.first + part;
                        AttentionTask task = task_of(call, s, head);
                        fetch_next(task, s, d, part, head);
                        if (d.parts == 1)
                            table.attention(task, first, last, scratch);
                        else
                            table.attention_parts(task, first, last, parts_of(s, d, head),
                                                  begin + from - at, begin + to - at, scratch);
                    });
        }
    });
    if (merged_rows == 0) return;
    worker.barrier();
    const std::size_t unit = std::max<std::size_t>(1, dealt_elements / shape.value_dim);
    Deal merge(worker, merged_rows, unit);
    at = 0;  // rows before this head's
    for_sequences(call, workspace, [&](const Sequence& s, const Division& d) {
        for (std::size_t head = 0; head < heads && d.parts > 1; ++head, at += d.rows)
            merge.within(at, at + d.rows, [&](std::size_t from, std::size_t to) {
                table.attention_merge(task_of(call, s, head), from - at, to - at,
                                      parts_of(s, d, head));
            });
    });
}

}  // namespace tensor_ops
