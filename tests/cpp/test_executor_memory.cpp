// Which memory an executor may use: that of the caller, whose arrays must lie apart where one is
// written, and its own, which must have room for the widest op and the most sequences.

#include "dispatch.h"
#include "graphs.h"
#include "ops/sparse.h"
#include "threads.h"

using namespace arrays;
using graphs::Builder;
using graphs::OpKind;
using graphs::Weight;
using tensor_ops::Activations;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Op;

namespace {

constexpr std::size_t width = 64, rows = 2, floats = width * rows;

const char* const overlap = "overlap, and 'y' is written; expected separate arrays";

}  // namespace

// ---- the caller's ------------------------------------------------------------------------------

TEST(arrays_that_overlap_in_part_are_refused_if_one_is_written) {
    Builder b;
    const int x = b.external("x", width), y = b.external("y", width);
    b.op(OpKind::add, {x, x}, y);
    Executor executor(b.graph, rows);
    Floats memory = normal(4 * floats, 1);
    const auto run = [&](std::size_t of_x, std::size_t of_y) {
        graphs::run(executor, {}, {{x, &memory[of_x]}, {y, &memory[of_y]}}, rows);
    };
    check::refused([&] { run(0, 1); }, std::string("buffers 'x' and 'y' ") + overlap);
    check::refused([&] { run(1, 0); }, overlap);
    check::refused([&] { run(0, floats - 1); }, overlap);
    check::refused([&] { run(floats - 1, 0); }, overlap);
    run(0, floats);
    run(floats, 0);
    run(0, 0);  // an elementwise op overwrites its input
}

TEST(arrays_that_begin_together_and_end_apart_are_refused) {
    Builder b;
    const int x = b.external("x", width), y = b.external("y", width / 2);
    b.op(OpKind::linear, {x}, y, b.slot("w"));
    Executor executor(b.graph, rows);
    Floats memory = normal(floats, 1);
    const std::vector<Weight> weights = {
        graphs::packed(matrices::random(DType::f32, width / 2, width, 1))};
    check::refused(
        [&] { graphs::run(executor, weights, {{x, memory.data()}, {y, memory.data()}}, rows); },
        overlap);
    check::refused(
        [&] {
            graphs::run(executor, weights, {{x, memory.data()}, {y, &memory[floats / 2]}}, rows);
        },
        overlap);
}

TEST(arrays_that_are_only_read_may_overlap) {
    Builder b;
    const int x = b.external("x", width), z = b.external("z", width), y = b.external("y", width);
    b.op(OpKind::add, {x, z}, y);
    Executor executor(b.graph, rows);
    Floats memory = normal(floats + 1, 1), out(floats);
    graphs::run(executor, {}, {{x, memory.data()}, {z, &memory[1]}, {y, out.data()}}, rows);
    check::equal(out[0], memory[0] + memory[1], "the sum");
}

TEST(what_a_product_writes_second_must_lie_apart_too) {
    Builder b;
    const int x = b.external("x", width), first = b.external("first", width),
              y = b.external("y", width);
    Op& op = b.op(OpKind::linear_many, {x}, first, b.slot("w"));
    op.more_outputs = {y};
    op.more_weights = {b.slot("v")};
    Executor executor(b.graph, rows);
    const Weight w = graphs::packed(matrices::random(DType::f32, width, width, 1));
    Floats memory = normal(floats + 1, 1), out(floats);
    check::refused(
        [&] {
            graphs::run(executor, {w, w},
                        {{x, memory.data()}, {first, out.data()}, {y, &memory[1]}}, rows);
        },
        overlap);
}

TEST(rows_of_blocks_take_the_bytes_of_blocks) {
    Builder b;
    const int blocks = b.external("blocks", width), y = b.external("y", width);
    b.op(OpKind::take_columns, {blocks}, y).quantized = true;
    Executor executor(b.graph, rows);
    const std::size_t bytes = rows * tensor_ops::row_bytes(DType::q8_0, width);
    Floats memory = filled(2 * floats, 0.0f);
    graphs::run(executor, {}, {{blocks, memory.data()}, {y, &memory[bytes / sizeof(float)]}}, rows);
    check::refused(
        [&] {
            graphs::run(executor, {},
                        {{blocks, memory.data()}, {y, &memory[bytes / sizeof(float) - 1]}}, rows);
        },
        overlap);
}

TEST(token_ids_of_several_embeddings_are_kept_apart) {
    Builder b;
    const int first = b.external("first", 1), second = b.external("second", 1);
    const int x = b.external("x", width), y = b.external("y", width);
    const int slot = b.slot("rows");
    b.op(OpKind::embed, {first}, x, slot);
    b.op(OpKind::embed, {second}, y, slot);
    const auto matrix = matrices::random(DType::f32, 9, width, 1);
    Array<std::int32_t> a = copy<std::int32_t>(std::vector{1, 2});
    Array<std::int32_t> c = copy<std::int32_t>(std::vector{7, 8});
    Floats out(floats), other(floats);
    Executor executor(b.graph, rows);
    graphs::run(executor, {graphs::raw_rows(matrix)},
                {{first, a.data()}, {second, c.data()}, {x, out.data()}, {y, other.data()}}, rows);
    for (std::size_t i = 0; i < floats; ++i) {
        check::equal(out[i], static_cast<float>(matrix.values[width + i]), "of the first");
        check::equal(other[i], static_cast<float>(matrix.values[7 * width + i]), "of the second");
    }
}

// ---- its own -----------------------------------------------------------------------------------

TEST(there_is_room_for_the_widest_product) {
    for (const bool widest_first : {true, false}) {
        Builder b;
        const std::size_t widest = 512;
        const int x = b.external("x", width), narrow = b.external("narrow", width),
                  wide = b.external("wide", widest);
        for (const bool is_wide : {widest_first, !widest_first})
            b.op(OpKind::linear_add, {x, is_wide ? wide : narrow}, is_wide ? wide : narrow,
                 b.slot("w"))
                .activations = Activations::f32;
        check::equal(Executor(b.graph, rows).bytes(), rows * widest * sizeof(float), "bytes");
    }
}

TEST(there_is_room_for_the_widest_input_of_integers) {
    for (const bool widest_first : {true, false}) {
        Builder b;
        const std::size_t widest = 512;
        const int narrow = b.external("narrow", width), wide = b.external("wide", widest),
                  y = b.external("y", width);
        for (const bool is_wide : {widest_first, !widest_first})
            b.op(OpKind::linear, {is_wide ? wide : narrow}, y, b.slot("w"));
        check::equal(Executor(b.graph, rows).bytes(),
                     tensor_ops::quantized_activation_bytes(Activations::q16, rows, widest),
                     "bytes");
    }
}

TEST(there_is_room_for_the_sequences_of_the_layer_that_has_most) {
    // So many positions that three tokens need more than what one sequence may take.
    constexpr std::size_t head_dim = 16, n_heads = 64, past = 66'000, capacity = past + 3;
    Floats k = filled(capacity * head_dim, 1), selection = filled(3 * head_dim, 0),
           x = normal(3 * n_heads * head_dim, 2), out(3 * n_heads * head_dim),
           narrow_x = normal(3 * head_dim, 3), narrow_out(3 * head_dim);
    const tensor_ops::KvCache cache{k.data(), k.data(), DType::f32, 1, capacity, head_dim};
    const std::vector<tensor_ops::CachedSequence> three(3, {1, past, cache}),
        one(1, {3, past, cache});
    const std::size_t needed = 3 * tensor_ops::attention_floats(n_heads, three[0]);
    check::that(needed > tensor_ops::attention_workspace_floats, "needed");
    const std::vector<Weight> none;
    for (const OpKind kind : {OpKind::attention, OpKind::sparse_attention}) {
        const bool sparse = kind == OpKind::sparse_attention;
        Builder b;
        const int selected = b.external("selection", head_dim);
        for (const std::size_t heads : {n_heads, std::size_t{1}}) {  // the last op needs less
            const int q = b.external("q", heads * head_dim), y = b.external("y", heads * head_dim);
            Op& op = b.op(kind, sparse ? std::vector{q, selected} : std::vector{q}, y);
            op.n_heads = heads;
            op.n_kv_heads = 1;
            op.head_dim = head_dim;
        }
        const std::size_t of_selected =
            sparse ? tensor_ops::sparse_workspace_floats(n_heads, head_dim, head_dim, 3) : 0;
        check::equal(Executor(b.graph, 3).bytes(),
                     (tensor_ops::attention_workspace_floats + of_selected) * sizeof(float),
                     "bytes before a run, for one sequence");
        for (const bool most_first : {true, false}) {
            Executor executor(b.graph, 3);
            const tensor_ops::Layer few{&none, one}, most{&none, three};
            const std::vector<tensor_ops::Layer> layers =
                most_first ? std::vector{most, few} : std::vector{few, most};
            std::vector<void*> pointers = {selection.data(), x.data(), out.data(), narrow_x.data(),
                                           narrow_out.data()};
            executor.run(layers, {.external = pointers, .n_tokens = 3});
            check::equal(executor.bytes(), (needed + of_selected) * sizeof(float), "bytes");
        }
    }
}

// Each of them may exist, but 2^64 bytes do not.
TEST(buffers_that_are_too_wide_together_are_refused) {
    Builder b;
    const int x = b.external("x", tensor_ops::longest_row);
    std::vector<int> all;
    for (int i = 0; i < 256; ++i) all.push_back(b.internal("wide", tensor_ops::longest_row));
    for (const int buffer : all) b.op(OpKind::add, {x, x}, buffer);
    for (const int buffer : all) b.op(OpKind::add, {buffer, buffer}, x);
    bool thrown = false;
    try {
        Executor(b.graph, tensor_ops::largest_batch);
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    check::that(thrown, "2^64 bytes of memory");
}
