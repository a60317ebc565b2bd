#include "flash_attention/divide.h"

#include <algorithm>

#include "flash_attention/refusal.h"

namespace tensor_ops::flash {
namespace {

constexpr std::size_t wanted_pieces = 128;        // enough for any number of threads
constexpr std::size_t most_divided_queries = 64;  // with more, queries alone make the pieces

constexpr std::size_t divide_up(std::size_t n, std::size_t by) { return (n + by - 1) / by; }
constexpr std::size_t round_up(std::size_t n, std::size_t to) { return divide_up(n, to) * to; }

// Runs of at most attention_query_tile rows, of sizes that differ by at most one token or head.
std::size_t head_runs_of(const Call& c) { return divide_up(c.group, attention_query_tile); }
std::size_t token_runs_of(const Call& c, std::size_t n_q) {
    const std::size_t heads = std::min(c.group, attention_query_tile);
    return divide_up(n_q, attention_query_tile / heads);
}

// Where piece i of n that divide `all` begins.
std::size_t begin_of(std::size_t i, std::size_t n, std::size_t all) { return i * all / n; }

// The first key that any query sees.
std::size_t first_seen(const Call& c, const Sequence& s) {
    if (s.n_kv <= s.n_q) return 0;
    const std::size_t p = s.n_kv - s.n_q;
    const std::size_t of_window = p > c.left ? p - c.left : 0;
    return std::max(of_window, c.chunk ? p - p % c.chunk : 0);
}

// Adds up the sizes of what lies in memory one after the other.
struct Memory {
    std::size_t end = 0;
    // Room for n * m * `bytes` bytes; returns where it begins.
    std::size_t add(std::size_t n, std::size_t m, std::size_t bytes) {
        const std::size_t begin = end;
        std::size_t size = 0;
        if (__builtin_mul_overflow(n, m, &size) || __builtin_mul_overflow(size, bytes, &size) ||
            size > std::size_t{1} << 46 || (end += round_up(size, 64)) > std::size_t{1} << 46)
            refuse(FA_INVALID, "q, k and num_splits ask for a workspace of more than 2^46 bytes");
        return begin;
    }
};

}  // namespace

Run Division::run(const Call& call, const Sequence& s, std::size_t i) const {
    const std::size_t t = i / head_runs, h = i % head_runs;
    const std::size_t token = begin_of(t, token_runs, s.n_q);
    const std::size_t head = begin_of(h, head_runs, call.group);
    return {token, begin_of(t + 1, token_runs, s.n_q) - token, head,
            begin_of(h + 1, head_runs, call.group) - head};
}

Division divide(const Call& c, const Sequence& s) {
    Division d{token_runs_of(c, s.n_q), head_runs_of(c), 1, 0, 0};
    if (c.most_parts == 1 || s.n_q == 0) return d;
    const std::size_t low = first_seen(c, s);
    const std::size_t units = divide_up(s.n_kv - low, attention_part_unit);
    for (std::size_t size = std::max<std::size_t>(1, divide_up(units, c.most_parts));; ++size) {
        d.positions = size * attention_part_unit;
        d.first_part = low / d.positions;
        d.parts = std::max<std::size_t>(1, divide_up(s.n_kv, d.positions) - d.first_part);
        if (d.parts <= c.most_parts) return d;
    }
}

std::size_t most_parts(const Call& c) {
    const std::size_t units = std::max<std::size_t>(1, divide_up(c.most_keys, attention_part_unit));
    if (c.p.num_splits > 0) return std::min(units, static_cast<std::size_t>(c.p.num_splits));
    if (c.most_queries > most_divided_queries) return 1;
    const std::size_t runs = token_runs_of(c, c.most_queries) * head_runs_of(c);
    const std::size_t pieces = std::max<std::size_t>(1, c.batch * c.kv_heads * runs);
    return std::clamp<std::size_t>(wanted_pieces / pieces, 1, units);
}

Workspace workspace_of(const Call& c, std::size_t threads, std::size_t kernel_floats) {
    Memory memory;
    Workspace w{};
    if (c.page_size) {
        w.pages_of_sequence = divide_up(c.most_keys, std::size_t{1} << c.page_bits);
        w.pages_k = memory.add(c.batch, w.pages_of_sequence, sizeof(void*));
        w.pages_v = memory.add(c.batch, w.pages_of_sequence, sizeof(void*));
    }
    if (c.most_parts > 1)
        w.parts =
            memory.add(c.total_queries * c.heads, c.most_parts * (c.value_dim + 2), sizeof(float));
    w.scratch_bytes = round_up(scratch_of(c, kernel_floats).floats * sizeof(float), 64);
    w.scratch = memory.add(threads, w.scratch_bytes, 1);
    w.bytes = memory.end + 64;
    return w;
}

Scratch scratch_of(const Call& c, std::size_t kernel_floats) {
    Scratch s{};
    s.q = round_up(kernel_floats, 16);
    s.out = s.q + attention_query_tile * round_up(c.query_dim, 16);
    s.angles = s.out + attention_query_tile * round_up(c.value_dim, 16);
    s.row = s.angles + round_up(c.rotary_dim, 16);
    s.floats = s.row + round_up(std::max(c.k_dim, c.value_dim), 16);
    return s;
}

}  // namespace tensor_ops::flash
