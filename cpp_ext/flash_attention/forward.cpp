#include "flash_attention/forward.h"

#include <algorithm>

#include "flash_attention/divide.h"
#include "flash_attention/rows.h"
#include "flash_attention/tensor.h"

namespace tensor_ops::flash {
namespace {

KvType kv_type_of(std::int32_t type) {
    return type == FA_F32    ? KvType::f32
           : type == FA_F16  ? KvType::f16
           : type == FA_BF16 ? KvType::bf16
           : type == FA_E4M3 ? KvType::e4m3
                             : KvType::q8_0;
}

float descale(const fa_tensor& t, std::size_t b, std::size_t head) {
    if (!is_there(t)) return 1.0f;
    return *reinterpret_cast<const float*>(data(t) + b * step(t, 0) + head * step(t, 1));
}

// One call, as each worker sees it.
class Forward {
 public:
    Forward(const KernelTable& table, int threads, const Call& call)
        : table_(table),
          c_(call),
          layout_(workspace_of(call, static_cast<std::size_t>(threads),
                               table.attention_scratch_floats)),
          scratch_(scratch_of(call, table.attention_scratch_floats)) {
        const auto address = reinterpret_cast<std::uintptr_t>(call.p.workspace);
        memory_ = static_cast<std::byte*>(call.p.workspace) + (64 - address % 64) % 64;
    }

    // Tells the kernels where the rows of pages lie.
    void fill_pages() const {
        if (!c_.page_size) return;
        for (std::size_t b = 0; b < c_.batch; ++b) {
            const Sequence s = sequence(c_, b);
            const std::int32_t* pages =
                c_.p.page_table + b * static_cast<std::size_t>(c_.p.page_table_stride);
            for (std::size_t i = 0; i << c_.page_bits < s.n_kv; ++i) {
                const std::size_t row = s.leftpad + (i << c_.page_bits);
                const auto page = static_cast<std::size_t>(pages[row / c_.page_size]);
                const std::size_t in_page = row % c_.page_size;
                pages_of(layout_.pages_k, b)[i] =
                    rows_of(c_.p.k, page, 0) + in_page * row_step(c_.p.k);
                pages_of(layout_.pages_v, b)[i] =
                    rows_of(c_.p.v, page, 0) + in_page * row_step(c_.p.v);
            }
        }
    }

    void work(const Worker& worker) const {
        auto* floats = reinterpret_cast<float*>(memory_ + layout_.scratch +
                                                static_cast<std::size_t>(worker.index()) *
                                                    layout_.scratch_bytes);
        if (c_.appends) {
            append(worker, table_, c_, floats + scratch_.row, floats + scratch_.angles);
            worker.barrier();
        }
        std::size_t pieces = 0, merged_runs = 0;
        for_sequences([&](const Sequence&, const Division& d) {
            pieces += c_.kv_heads * d.runs() * d.parts;
            if (d.parts > 1) merged_runs += c_.kv_heads * d.runs();
        });
        // Runs are dealt one by one, as those of later queries are larger.  Parts are dealt in
        // stretches, as memory is best read in order.
        Deal deal(worker, pieces, 1, merged_runs ? pieces : 1);
        // In a row of the cache the heads may lie side by side, or each head in memory of its own.
        const bool heads_in_turn = head_step(c_.p.k) < row_step(c_.p.k);
        std::size_t at = 0;  // pieces before this sequence's
        for_sequences([&](const Sequence& s, const Division& d) {
            const std::size_t heads = c_.kv_heads, of_run = heads * d.parts;
            deal.within(at, at + d.runs() * of_run, [&](std::size_t from, std::size_t to) {
                for (std::size_t i = from - at; i < to - at; ++i) {
                    const std::size_t j = i % of_run;
                    const Run run = d.run(c_, s, i / of_run);
                    if (heads_in_turn)
                        compute(s, d, run, j % heads, j / heads, floats);
                    else
                        compute(s, d, run, j / d.parts, j % d.parts, floats);
                }
            });
            at += d.runs() * of_run;
        });
        if (merged_runs == 0) return;
        worker.barrier();
        Deal merge(worker, merged_runs);
        at = 0;
        for_sequences([&](const Sequence& s, const Division& d) {
            if (d.parts == 1) return;
            merge.within(at, at + c_.kv_heads * d.runs(), [&](std::size_t from, std::size_t to) {
                for (std::size_t i = from - at; i < to - at; ++i) {
                    const std::size_t head = i % c_.kv_heads;
                    const Run run = d.run(c_, s, i / c_.kv_heads);
                    const AttentionTask task = task_of(s, run, head, floats);
                    table_.attention_merge(task, 0, run.rows(), parts_of(s, d, run, head));
                    store(s, run, head, task);
                }
            });
            at += c_.kv_heads * d.runs();
        });
    }

 private:
    template <class F>
    void for_sequences(F&& f) const {
        for (std::size_t b = 0; b < c_.batch; ++b) {
            const Sequence s = sequence(c_, b);
            f(s, divide(c_, s));
        }
    }

    const std::byte** pages_of(std::size_t where, std::size_t b) const {
        return reinterpret_cast<const std::byte**>(memory_ + where) + b * layout_.pages_of_sequence;
    }

    // The rows of k or v that one KV head of a sequence has.
    KvRows kv_rows(const Sequence& s, const fa_tensor& t, std::size_t pages,
                   std::size_t head) const {
        const std::size_t offset = head * head_step(t);
        if (c_.page_size)
            return {pages_of(pages, s.index), nullptr, offset, c_.page_bits, row_step(t)};
        const std::byte* first = rows_of(t, s.cache, s.first) + s.leftpad * row_step(t);
        return {nullptr, first + offset, 0, 0, row_step(t)};
    }

    // A query head's row of q, q_v or out.
    static std::byte* row_of(const fa_tensor& t, const Sequence& s, std::size_t token,
                             std::size_t head) {
        return rows_of(t, s.index, s.q_first) + token * row_step(t) + head * head_step(t);
    }

    // Whether the kernel can read or write rows of t, `dim` floats wide, where they lie.
    bool in_place(const fa_tensor& t, std::size_t dim) const {
        return t.type == FA_F32 && (c_.group == 1 || head_step(t) == dim * sizeof(float));
    }
    bool queries_in_place() const {
        return in_place(c_.p.q, c_.k_dim) && !is_there(c_.p.q_v) && !c_.rotary_dim;
    }
    bool outputs_in_place() const {
        return in_place(c_.p.out, c_.value_dim) && !is_there(c_.p.v_descale);
    }

    // The kernel's task for a run: its tokens are the last ones up to the end of the sequence.
    AttentionTask task_of(const Sequence& s, const Run& run, std::size_t kv_head,
                          float* floats) const {
        const fa_fwd_params& p = c_.p;
        const std::size_t head = kv_head * c_.group + run.head;
        AttentionTask task{
            .q = floats + scratch_.q,
            .q_stride = run.n_heads * c_.query_dim,
            .k = kv_rows(s, p.k, layout_.pages_k, kv_head),
            .v = kv_rows(s, p.v, layout_.pages_v, kv_head),
            .kv_type = kv_type_of(p.k.type),
            .n_q = s.n_q - run.token,
            .group = run.n_heads,
            .n_kv = s.n_kv,
            .head_dim = c_.query_dim,
            .value_dim = c_.value_dim,
            .scale = c_.scale * descale(p.q_descale, s.index, kv_head) *
                     descale(p.k_descale, s.index, kv_head),
            .causal = c_.causal,
            .window = c_.chunk,
            .chunked = c_.chunk != 0,
            .left = c_.left,
            .right = c_.right,
            .k_dim = is_there(p.q_v) ? c_.k_dim : 0,
            .softcap = p.softcap,
            .sinks =
                is_there(p.sinks) ? reinterpret_cast<const float*>(data(p.sinks)) + head : nullptr,
            .out = floats + scratch_.out,
            .out_stride = run.n_heads * c_.value_dim,
        };
        if (queries_in_place()) {
            task.q = reinterpret_cast<const float*>(row_of(p.q, s, run.token, head));
            task.q_stride = row_step(p.q) / sizeof(float);
        }
        if (outputs_in_place()) {
            task.out = reinterpret_cast<float*>(row_of(p.out, s, run.token, head));
            task.out_stride = row_step(p.out) / sizeof(float);
        }
        if (is_there(p.lse)) {
            const int rank = p.lse.rank;
            task.lse_stride = static_cast<std::size_t>(p.lse.stride[rank - 1]);
            task.lse_head_stride = static_cast<std::size_t>(p.lse.stride[rank - 2]);
            const std::size_t first = rank == 3 ? run.token : s.q_first + run.token;
            task.lse = reinterpret_cast<float*>(data(p.lse)) + first * task.lse_stride +
                       head * task.lse_head_stride;
            if (rank == 3) task.lse += s.index * static_cast<std::size_t>(p.lse.stride[0]);
        }
        return task;
    }

    // The results of parts for the rows of a run.
    AttentionParts parts_of(const Sequence& s, const Division& d, const Run& run,
                            std::size_t kv_head) const {
        const std::size_t width = c_.value_dim + 2, stride = c_.heads * s.n_q * width;
        auto* of_sequence = reinterpret_cast<float*>(memory_ + layout_.parts) +
                            s.q_first * c_.heads * c_.most_parts * width;
        const std::size_t row = (kv_head * c_.group + run.head) * s.n_q + run.token * run.n_heads;
        return {d.positions, d.first_part, of_sequence + row * width, stride};
    }

    // Reads the queries of a run as the kernel takes them, rotated and with q_v behind.
    void load_queries(const Sequence& s, const Run& run, std::size_t kv_head, float* floats) const {
        const fa_fwd_params& p = c_.p;
        float* row = floats + scratch_.q;
        for (std::size_t t = run.token; t < run.token + run.n_tokens; ++t) {
            float* of_token = row;
            for (std::size_t h = 0; h < run.n_heads; ++h, row += c_.query_dim) {
                const std::size_t head = kv_head * c_.group + run.head + h;
                load_row(table_, p.q.type, row_of(p.q, s, t, head), c_.k_dim, row);
                if (is_there(p.q_v))
                    load_row(table_, p.q_v.type, row_of(p.q_v, s, t, head), c_.value_dim,
                             row + c_.k_dim);
            }
            if (!c_.rotary_dim) continue;
            rotate_rows(table_, c_, s.rotary + (c_.rotates_by_query() ? t : 0), run.n_heads,
                        c_.query_dim, of_token, floats + scratch_.angles);
        }
    }

    // Writes the rows of a run that the kernel has not written in place.
    void store(const Sequence& s, const Run& run, std::size_t kv_head,
               const AttentionTask& task) const {
        if (outputs_in_place()) return;
        const fa_tensor& out = c_.p.out;
        const float scale = descale(c_.p.v_descale, s.index, kv_head);
        float* row = task.out;
        for (std::size_t t = run.token; t < run.token + run.n_tokens; ++t)
            for (std::size_t h = 0; h < run.n_heads; ++h, row += c_.value_dim) {
                if (scale != 1.0f)
                    std::transform(row, row + c_.value_dim, row,
                                   [=](float x) { return x * scale; });
                store_row(table_, out.type, row, c_.value_dim,
                          row_of(out, s, t, kv_head * c_.group + run.head + h));
            }
    }

    void compute(const Sequence& s, const Division& d, const Run& run, std::size_t kv_head,
                 std::size_t part, float* floats) const {
        if (!queries_in_place()) load_queries(s, run, kv_head, floats);
        const AttentionTask task = task_of(s, run, kv_head, floats);
        if (d.parts == 1) {
            table_.attention(task, 0, run.rows(), floats);
            store(s, run, kv_head, task);
        } else {
            const std::size_t i = d.first_part + part;
            table_.attention_parts(task, 0, run.rows(), parts_of(s, d, run, kv_head), i, i + 1,
                                   floats);
        }
    }

    const KernelTable& table_;
    const Call& c_;
    Workspace layout_;
    Scratch scratch_;
    std::byte* memory_;  // the workspace, aligned
};

}  // namespace

void forward(const KernelTable& table, int threads, const Call& call) {
    const Forward work(table, threads, call);
    work.fill_pages();
    run_team([&](const Worker& worker) { work.work(worker); }, threads);
}

}  // namespace tensor_ops::flash
