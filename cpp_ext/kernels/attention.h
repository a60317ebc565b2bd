// Attention over tiles of KV positions with an online softmax (Milakov and Gimelshein 2018, Dao et
// al. 2022): scores never exist beyond one tile, and K and V are read once for all rows of a query
// tile, that is for all heads that share them and for several tokens.
//
// A row is one query head of one token: row = token * group + head.
#pragma once

#include "kernels/attention_tile.h"

namespace tensor_ops {
namespace {

inline constexpr std::size_t many_tile = 96;  // positions at a time: a multiple of float_tile
// With few rows: positions of K at a time, and positions of the softmax and V at a time.  Longer
// stretches of memory are read faster: 29 GB/s with 2048 positions, 26 with 512.  Sums of 512 keep
// rounding small.
inline constexpr std::size_t few_tile = 2048;
inline constexpr std::size_t few_chunk = attention_part_unit;
// Positions that stay in the nearest cache.  A page holds whole blocks.
inline constexpr std::size_t few_block = attention_page_unit;
inline constexpr std::size_t max_few_width = 8;
// Bytes between what is used and what is fetched.  The CPU reads ahead by itself, but begins anew
// with each page.
inline constexpr std::size_t fetched_ahead = 8192;

struct AttentionScratch {
    // Queries: panels [head_dim][width]; few rows: [row][head_dim].
    float q[attention_query_tile * attention_max_head_dim];
    float keys[many_tile * attention_max_head_dim];    // [position][head_dim], unless in place
    float values[many_tile * attention_max_head_dim];  // panels [position][2 vectors]
    // [position][width], and room for a vector that begins at the last position.
    float scores[few_tile * max_few_width + 16];
    // Weighted sums of V, [row][whole panels].
    float out[attention_query_tile * attention_max_head_dim];
    float chunk[max_few_width * attention_max_head_dim];  // the same of one chunk
    float factor[max_width];
    // One for each panel; a panel of fewer than 8 rows is the only one.
    PanelState states[attention_query_tile / 8];
};
inline constexpr std::size_t attention_scratch_floats = sizeof(AttentionScratch) / sizeof(float);

// The positions [low, high) that a row sees.
struct Reach {
    std::size_t low, high;
};
inline Reach reach(const AttentionTask& task, std::size_t row) {
    // The position after the row's own, plus n_q: with more queries than positions, the first
    // queries stand before position 0.
    const std::size_t next = task.n_kv + row / task.group + 1;
    const auto position = [&](std::size_t shifted) {
        return std::min(shifted > task.n_q ? shifted - task.n_q : 0, task.n_kv);
    };
    const std::size_t most = task.n_q + task.n_kv;  // no window needs to be larger
    const std::size_t left = std::min(task.left, most), right = std::min(task.right, most);
    Reach seen{next > left ? position(next - 1 - left) : 0, position(next + right)};
    if (task.causal) seen.high = std::min(seen.high, position(next));
    if (!task.window) return seen;
    if (task.chunked) {
        if (next <= task.n_q) return {0, 0};  // before position 0
        const std::size_t own = next - 1 - task.n_q, low = own - own % task.window;
        return {std::max(seen.low, low),
                std::min(seen.high, low + std::min(task.window, task.n_kv - low))};
    }
    const std::size_t window = std::min(task.window, most);
    return {std::max(seen.low, next > window ? position(next - window) : 0),
            std::min(seen.high, position(next - 1 + window))};
}

// Which of positions [p, p + n) rows [first, last) see, side by side in a panel of that width.
template <class Isa>
Visible visible_part(const AttentionTask& task, std::size_t first, std::size_t last,
                     std::size_t width, std::size_t p, std::size_t n) {
    constexpr std::size_t w = lanes<Isa>;
    Visible visible;
    // The first row's reach ends first, the last row's begins last.
    visible.all = reach(task, first).high >= p + n && reach(task, last - 1).low <= p &&
                  n % std::max<std::size_t>(1, w / width) == 0;
    if (visible.all) return visible;
    for (std::size_t i = 0; i < std::max(width, w); ++i) {
        const Reach r = reach(task, std::min(first + i % width, last - 1));
        visible.low[i] = static_cast<float>(std::clamp(r.low, p, p + n) - p);
        visible.high[i] = static_cast<float>(std::clamp(r.high, p, p + n) - p);
        visible.ahead[i] = static_cast<float>(i / width);
    }
    return visible;
}

// What rows [first, last), side by side in a panel of that width, add to scores from position p on.
template <class Isa>
Slant slant_from(const AttentionTask& task, std::size_t first, std::size_t last, std::size_t width,
                 std::size_t p) {
    Slant slant;
    slant.any = task.slopes != nullptr;
    if (!slant.any) return slant;
    for (std::size_t i = 0; i < std::max(width, lanes<Isa>); ++i) {
        const std::size_t row = std::min(first + i % width, last - 1);
        // Modulo 2^64: the difference from the row's own position is what counts.
        const std::size_t own = task.n_kv - task.n_q + row / task.group;
        slant.slope[i] = task.slopes[row % task.group] * log2_e;
        slant.ahead[i] = static_cast<float>(static_cast<std::ptrdiff_t>(p + i / width - own));
    }
    return slant;
}

inline const float* query(const AttentionTask& task, std::size_t row) {
    return task.q + row / task.group * task.q_stride + row % task.group * task.head_dim;
}

// Finishes a row that has seen all of its positions: adds its head's sink to the sum, and writes
// out and lse.
template <class Isa>
void finish_row(const AttentionTask& task, std::size_t row, float top, float sum,
                const float* values) {
    const std::size_t token = row / task.group, head = row % task.group, dim = task.value_dim;
    // In float64, as a sink may be as large as the largest float32.
    constexpr double infinity = std::numeric_limits<double>::infinity(),
                     log2_of_e = 1.4426950408889634;
    const double sink = task.sinks ? task.sinks[head] * log2_of_e : -infinity;
    const double highest = std::max<double>(top, sink);
    const bool nothing = highest == -infinity;
    const double weight = nothing ? 0.0 : std::exp2(top - highest);
    // If the row has seen nothing, the sum is 0, or NaN.
    const double total = nothing ? sum : sum * weight + std::exp2(sink - highest);
    const Floats<Isa> scale(nothing ? 0.0f : static_cast<float>(weight / total));
    map<Isa>(
        dim, task.out + token * task.out_stride + head * dim,
        [scale](Floats<Isa> x) { return x * scale; }, values);
    if (task.lse)
        task.lse[token * task.lse_stride + head * task.lse_head_stride] =
            static_cast<float>((highest + std::log2(total)) / log2_of_e);
}

struct NoFetch {
    void operator()(std::size_t) const {}
};

// The rows [first, last) of a query tile, and their state after the positions so far.
template <class Isa, class Source>
struct QueryTile {
    static constexpr std::size_t w = lanes<Isa>;
    // Whether the products of few rows can read the type.
    static constexpr bool is_read_in_place =
        std::is_same_v<Source, float> || std::is_same_v<Source, Half>;
    const AttentionTask& task;
    const AttentionParts* parts;
    AttentionScratch& s;
    std::size_t first, last, rows, d, value_dim, stride, width;
    bool few;
    bool copies_keys, copies_values;  // few rows: the products read float32 copies
    float scale, softcap;  // scores are in units of log 2, so that their softmax takes powers of 2

    QueryTile(const AttentionTask& t, std::size_t from, std::size_t to, const AttentionParts* p,
              AttentionScratch& scratch)
        : task(t),
          parts(p),
          s(scratch),
          first(from),
          last(to),
          rows(to - from),
          d(t.head_dim),
          value_dim(t.value_dim),
          stride(round_up(value_dim, panel<Isa>)),
          width(panel_width<Isa>(rows, t)),
          few(are_few<Isa>(rows, t)),
          copies_keys(!is_read_in_place || t.k_dim || !t.k.in_blocks() ||
                      t.k.row_bytes != d * sizeof(Source)),
          copies_values(!is_read_in_place || !t.v.in_blocks()),
          scale(t.softcap != 0.0f ? t.scale / t.softcap : t.scale * log2_e),
          softcap(t.softcap * log2_e) {
        if (few)
            copy_queries();
        else
            for (std::size_t r = 0; r < rows; r += w) transpose_queries(r);
        start();
    }

    // Copies the queries as [width][head_dim]; missing rows become zeros.
    void copy_queries() {
        for (std::size_t r = 0; r < width; ++r)
            if (r < rows)
                map<Isa>(
                    d, s.q + r * d, [this](Floats<Isa> x) { return x * scale; },
                    query(task, first + r));
            else
                std::memset(s.q + r * d, 0, d * sizeof(float));
    }

    // Transposes a vector of rows to columns of [head_dim][width], in squares.
    void transpose_queries(std::size_t r) {
        static constexpr float zeros[attention_max_head_dim] = {};
        const float* row[w];
        for (std::size_t i = 0; i < w; ++i)
            row[i] = r + i < rows ? query(task, first + r + i) : zeros;
        float* q = s.q + r / width * width * d + r % width;
        std::size_t c = 0;
        for (; c + w <= d; c += w) {
            Floats<Isa> square[w];
            unroll<w>([&](auto i) { square[i] = load<Isa>(row[i] + c) * scale; });
            transpose<Isa>(square);
            unroll<w>([&](auto i) { square[i].store_unaligned(q + (c + i) * width); });
        }
        for (; c < d; ++c)
            for (std::size_t i = 0; i < w; ++i) q[c * width + i] = row[i][c] * scale;
    }

    void start() {
        for (std::size_t i = 0; i * width < rows; ++i) {
            std::fill_n(s.states[i].top, max_width, minus_infinity);
            std::fill_n(s.states[i].sum, max_width, 0.0f);
        }
        std::memset(s.out, 0, std::max(rows, width) * stride * sizeof(float));
    }

    // Many rows: processes positions [begin, end), at most a tile, for all panels.  Meanwhile the
    // rows of the next tile, up to read_end, are fetched.
    void attend_many(std::size_t begin, std::size_t end, std::size_t read_end) {
        const std::size_t n = end - begin;
        const float* keys = s.keys;
        if (task.k_dim)
            copy_keys(begin, n, nullptr);
        else
            keys = unpack_rows<Isa, Source>(task.k, d, begin, n, s.keys);
        unpack_panels<Isa, Source>(task.v, value_dim, begin, n, s.values);
        // Of the next tile, a few rows with each product of scores: 8,192 positions of 8 heads, 8
        // MB each, then take 0.92 of the time on a Xeon with 2 MB of L2.
        const std::size_t products = (rows + width - 1) / width * (many_tile / Isa::float_tile);
        const std::size_t fetched = (many_tile + products - 1) / products;
        const std::size_t k_bytes = bytes_of_row<Source>(task.k_dim ? task.k_dim : d);
        const std::size_t ahead_end = std::min(end + many_tile, read_end);
        auto fetch = [&, p = end]() mutable {
            for (const std::size_t to = std::min(p + fetched, ahead_end); p < to; ++p) {
                fetch_row(kv_row<Source>(task.k, p), k_bytes);
                fetch_row(kv_row<Source>(task.v, p), bytes_of_row<Source>(value_dim));
            }
        };
        for (std::size_t i = 0; i * width < rows; ++i) {
            const std::size_t r = first + i * width, to = std::min(r + width, last);
            const std::size_t until = std::min(end, reach(task, to - 1).high);
            if (until <= begin || reach(task, r).low >= until) continue;
            const std::size_t seen = until - begin;
            const Visible visible = visible_part<Isa>(task, r, to, width, begin, seen);
            const Slant slant = slant_from<Isa>(task, r, to, width, begin);
            const auto make_weights = [&](auto vectors) {
                score_many<Isa, vectors>(keys, seen, d, s.q + i * width * d, s.scores, fetch);
                weigh<Isa, vectors>(s.scores, width, seen, softcap, slant, visible, s.states[i],
                                    s.factor);
            };
            if (width == w)
                make_weights(std::integral_constant<std::size_t, 1>{});
            else
                make_weights(std::integral_constant<std::size_t, 2>{});
            add_values_many<Isa>(s.scores, width, to - r, seen, s.values, n * panel<Isa>, value_dim,
                                 s.factor, s.out + i * width * stride, stride);
        }
    }

    // Few rows: the row that is read `fetched_ahead` bytes, or whole blocks of rows, after that of
    // position p of `kv`: its rows up to `end` are followed by those of `next` from `from` on.
    const Source* row_ahead(const KvRows& kv, std::size_t p, std::size_t end, const KvRows& next,
                            std::size_t from) const {
        const std::size_t at =
            p + round_up(std::max<std::size_t>(
                             fetched_ahead / std::max<std::size_t>(kv.row_bytes, 1), 1),
                         few_block);
        if (at < end) return kv_row<Source>(kv, at);
        return kv_row<Source>(next, std::min(from + (at - end), task.n_kv - 1));
    }

    // Copies keys as float32 [n][head_dim].
    void copy_keys(std::size_t begin, std::size_t n, const Source* ahead) {
        const std::size_t k_dim = task.k_dim ? task.k_dim : d;
        copy_rows<Isa>(task.k, k_dim, begin, n, s.keys, d, ahead);
        if (task.k_dim) copy_rows<Isa, Source>(task.v, value_dim, begin, n, s.keys + k_dim, d);
    }

    static auto fetching(const Source* ahead) {
        return [ahead](std::size_t i) { __builtin_prefetch(ahead + i, 0, 2); };
    }

    // Few rows: calls f(p, n, ahead) for blocks of positions [begin, end), which end at multiples
    // of few_block, as pages do.  See row_ahead for the others.
    template <class F>
    void for_blocks(const KvRows& kv, std::size_t begin, std::size_t end, std::size_t read_end,
                    const KvRows& next, std::size_t from, F&& f) const {
        for (std::size_t p = begin; p < end;) {
            const std::size_t n = std::min(few_block - p % few_block, end - p);
            f(p, n, row_ahead(kv, p, read_end, next, from));
            p += n;
        }
    }

    // Few rows: computes the scores of positions [begin, end).
    void score(std::size_t begin, std::size_t end) {
        if (copies_keys) return score_copies(begin, end);
        if constexpr (is_read_in_place)
            with_width<Isa>(width, [&](auto columns) {
                for_blocks(task.k, begin, end, end, task.v, begin,
                           [&](std::size_t p, std::size_t n, const Source* ahead) {
                               score_few<Isa, columns>(kv_row<Source>(task.k, p), n, d, s.q,
                                                       s.scores + (p - begin) * width,
                                                       fetching(ahead));
                           });
            });
    }

    // The copies are made in functions of their own: in the others, these branches take 4% of the
    // time of keys and values that are read in place.
    [[gnu::noinline]] void score_copies(std::size_t begin, std::size_t end) {
        with_width<Isa>(width, [&](auto columns) {
            for_blocks(task.k, begin, end, end, task.v, begin,
                       [&](std::size_t p, std::size_t n, const Source* ahead) {
                           copy_keys(p, n, ahead);
                           score_few<Isa, columns>(s.keys, n, d, s.q,
                                                   s.scores + (p - begin) * width, NoFetch{});
                       });
        });
    }

    // Few rows: adds the values of positions [begin, end), weighted by the scores, to s.chunk.
    // After those up to scored_end, rows of `next` are read, from position `from` on.
    void add_values(std::size_t begin, std::size_t end, std::size_t scored_end, const KvRows& next,
                    std::size_t from, const float* scores) {
        if (copies_values) return add_copied_values(begin, end, scored_end, next, from, scores);
        if constexpr (is_read_in_place) {
            const std::size_t step = task.v.row_bytes / sizeof(Source);
            with_width<Isa>(width, [&](auto columns) {
                for_blocks(task.v, begin, end, scored_end, next, from,
                           [&](std::size_t p, std::size_t n, const Source* ahead) {
                               add_values_few<Isa, columns>(
                                   scores + (p - begin) * width, n, kv_row<Source>(task.v, p), step,
                                   value_dim, s.chunk, stride, fetching(ahead));
                           });
            });
        }
    }

    [[gnu::noinline]] void add_copied_values(std::size_t begin, std::size_t end,
                                             std::size_t scored_end, const KvRows& next,
                                             std::size_t from, const float* scores) {
        with_width<Isa>(width, [&](auto columns) {
            for_blocks(task.v, begin, end, scored_end, next, from,
                       [&](std::size_t p, std::size_t n, const Source* ahead) {
                           copy_rows<Isa>(task.v, value_dim, p, n, s.values, value_dim, ahead);
                           add_values_few<Isa, columns>(scores + (p - begin) * width, n, s.values,
                                                        value_dim, value_dim, s.chunk, stride,
                                                        NoFetch{});
                       });
        });
    }

    // Few rows: the softmax of positions [begin, end), and their values; see add_values.
    void attend_few(std::size_t begin, std::size_t end, std::size_t scored_end, const KvRows& next,
                    std::size_t from, float* scores) {
        const Visible visible = visible_part<Isa>(task, first, last, width, begin, end - begin);
        const Slant slant = slant_from<Isa>(task, first, last, width, begin);
        weigh<Isa, 1>(scores, width, end - begin, softcap, slant, visible, s.states[0], s.factor);
        std::memset(s.chunk, 0, width * stride * sizeof(float));
        add_values(begin, end, scored_end, next, from, scores);
        for (std::size_t r = 0; r < rows; ++r) {
            const Floats<Isa> factor(s.factor[r]);
            map<Isa>(
                value_dim, s.out + r * stride,
                [factor](Floats<Isa> x, Floats<Isa> y) { return xsimd::fma(x, factor, y); },
                s.out + r * stride, s.chunk + r * stride);
        }
    }

    // Processes positions [begin, end).  Tiles end at multiples of their size, wherever they begin,
    // so that results do not depend on how the positions are divided into calls.
    void attend(std::size_t begin, std::size_t end) {
        const std::size_t low = reach(task, first).low;
        begin = std::max(begin, low);
        end = std::min(end, reach(task, last - 1).high);
        const auto end_of = [&](std::size_t p, std::size_t size) {
            return std::min(end, p - p % size + size);
        };
        std::size_t scored = begin, scored_end = begin;  // few rows: the positions of s.scores
        for (std::size_t p = begin; p < end;) {
            std::size_t next = end_of(p, few ? few_chunk : many_tile);
            if (parts) next = std::min(next, end_of(p, parts->positions));
            if (few) {
                // Scores come in whole vectors.  If p is inside a chunk, only that chunk is scored,
                // so that the next one begins with a whole vector.
                const bool whole = p % few_chunk == 0;
                if (p == begin || p % few_tile == 0 || scored % few_chunk != 0) {
                    scored = p;
                    scored_end = end_of(p, whole ? few_tile : few_chunk);
                    score(scored, scored_end);
                }
                const bool done = scored_end == end && task.next.exist();
                attend_few(p, next, scored_end, done ? task.next : task.k,
                           done ? std::max(task.next_from, low) : scored_end,
                           s.scores + (p - scored) * width);
            } else {
                attend_many(p, next, end);
            }
            p = next;
            if (parts && (p == end || p % parts->positions == 0)) {
                store_part((p - 1) / parts->positions);
                start();
            }
        }
    }

    float sum_of(std::size_t r) const {
        float sum = 0.0f;
        for (std::size_t i = r % width; i < std::max(width, w); i += width)
            sum += s.states[r / width].sum[i];
        return sum;
    }

    void finish() {
        for (std::size_t r = 0; r < rows; ++r)
            finish_row<Isa>(task, first + r, s.states[r / width].top[r % width], sum_of(r),
                            s.out + r * stride);
    }

    void store_part(std::size_t part) {
        for (std::size_t r = 0; r < rows; ++r) {
            float* to = parts->row(part, first + r, value_dim);
            std::memcpy(to, s.out + r * stride, value_dim * sizeof(float));
            to[value_dim] = s.states[r / width].top[r % width];
            to[value_dim + 1] = sum_of(r);
        }
    }
};

// Calls f with a QueryTile for each tile of rows [first, last), made for the task's type of KV.
template <class Isa, class F>
void for_query_tiles(const AttentionTask& task, std::size_t first, std::size_t last,
                     const AttentionParts* parts, float* scratch, F&& f) {
    auto& s = *reinterpret_cast<AttentionScratch*>(scratch);
    with_kv_source(task.kv_type, [&](auto source) {
        for (std::size_t r = first; r < last; r += attention_query_tile)
            f(QueryTile<Isa, std::remove_cvref_t<decltype(*source)>>(
                task, r, std::min(r + attention_query_tile, last), parts, s));
    });
}

template <class Isa>
void attention(const AttentionTask& task, std::size_t first, std::size_t last, float* scratch) {
    for_query_tiles<Isa>(task, first, last, nullptr, scratch, [&](auto tile) {
        tile.attend(0, task.n_kv);
        tile.finish();
    });
}

template <class Isa>
void attention_parts(const AttentionTask& task, std::size_t first, std::size_t last,
                     const AttentionParts& parts, std::size_t from, std::size_t to,
                     float* scratch) {
    for_query_tiles<Isa>(task, first, last, &parts, scratch, [&](auto tile) {
        tile.attend(from * parts.positions, to * parts.positions);
    });
}

template <class Isa>
void attention_merge(const AttentionTask& task, std::size_t first, std::size_t last,
                     const AttentionParts& parts) {
    using F = Floats<Isa>;
    const std::size_t d = task.value_dim;
    for (std::size_t r = first; r < last; ++r) {
        const Reach seen = reach(task, r);
        const std::size_t from = seen.low / parts.positions;
        const std::size_t to = (seen.high + parts.positions - 1) / parts.positions;
        float top = minus_infinity, sum = 0.0f;
        for (std::size_t i = from; i < to; ++i) top = std::max(top, parts.row(i, r, d)[d]);
        float values[attention_max_head_dim] = {};
        for (std::size_t i = from; i < to; ++i) {
            const float* part = parts.row(i, r, d);
            const float weight = top == minus_infinity ? 0.0f : std::exp2(part[d] - top);
            map<Isa>(
                d, values, [weight](F total, F x) { return xsimd::fma(x, F(weight), total); },
                values, part);
            sum += part[d + 1] * weight;
        }
        finish_row<Isa>(task, r, top, sum, values);
    }
}

}  // namespace
}  // namespace tensor_ops
