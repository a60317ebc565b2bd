// SequenceState: which memory each layer gets, and what is refused.

#include "arrays.h"
#include "check.h"
#include "graph/state.h"

using namespace arrays;
using tensor_ops::DType;
using tensor_ops::SequenceState;

namespace {

constexpr std::size_t page_rows = 32, heads = 2, width = 16, part = heads * page_rows * width * 4;

SequenceState::Layer layer(std::size_t offset, std::size_t table = 0) {
    return {SequenceState::Keys{table, offset, offset + part, DType::f32, heads, width, width}, 0,
            0};
}

SequenceState two_layers() { return {{{page_rows, 4 * part}}, {layer(0), layer(2 * part)}}; }

void refused(const SequenceState::Layer& wrong, const char* says) {
    check::refused([&] { SequenceState({{page_rows, 2 * part}}, {wrong}); }, says);
}

}  // namespace

TEST(a_layer_finds_the_row_of_each_head_and_position_in_its_page) {
    Array<std::byte> first(4 * part, 0), second(4 * part, 0);
    SequenceState state = two_layers();
    state.set_page(0, 0, {first.data(), first.size()});
    state.set_page(0, 1, {second.data(), second.size()});
    const tensor_ops::CachedSequence kept = state.layer(1, 3, 40);
    check::equal(kept.n_tokens, std::size_t{3}, "tokens");
    check::equal(kept.past, std::size_t{40}, "past");
    check::equal(kept.cache.capacity, 2 * page_rows, "capacity");
    const std::byte* expected = second.data() + 2 * part + (page_rows + 5) * width * 4;
    check::that(kept.cache.keys(1).row(page_rows + 5) == expected, "keys");
    check::that(kept.cache.values(1).row(page_rows + 5) == expected + part, "values");
}

TEST(pages_go_at_both_ends_and_come_at_the_last) {
    Array<std::byte> page(4 * part, 0);
    const std::span<std::byte> memory(page.data(), page.size());
    SequenceState state = two_layers();
    state.set_page(0, 7, memory);  // the first one may have any number
    state.set_page(0, 8, memory);
    state.set_page(0, 9, memory);
    check::refused([&] { state.set_page(0, 11, memory); }, "page 11 does not follow");
    check::refused([&] { state.set_page(0, 6, memory); }, "page 6 does not follow");
    state.keep_pages(0, 8, 9);
    check::equal(state.layer(0, 0, 0).cache.first, 8 * page_rows, "first");
    check::equal(state.layer(0, 0, 0).cache.capacity, 9 * page_rows, "capacity");
    check::refused([&] { state.set_page(0, 7, memory); }, "page 7 does not follow");
    state.set_page(0, 9, memory);
    state.keep_pages(0, 0, 10);  // what has gone does not come back
    check::equal(state.layer(0, 0, 0).cache.first, 8 * page_rows, "first of what there is");
    state.keep_pages(0, 20, 30);
    check::equal(state.layer(0, 0, 0).cache.capacity, 10 * page_rows, "capacity of none");
    check::equal(state.layer(0, 0, 0).cache.first, 10 * page_rows, "first of none");
    state.set_page(0, 2, memory);
    check::equal(state.layer(0, 0, 0).cache.first, 2 * page_rows, "first of the new one");
}

TEST(a_page_whose_number_is_beyond_any_sequence_takes_no_memory) {
    Array<std::byte> page(4 * part, 0);
    SequenceState state = two_layers();
    for (const std::size_t number : {std::size_t{1} << 24, std::size_t{1} << 60, SIZE_MAX})
        check::refused([&] { state.set_page(0, number, {page.data(), page.size()}); },
                       "does not follow");
}

TEST(recurrent_memory_is_divided_among_the_layers) {
    Floats memory = normal(50, 1);
    SequenceState state({}, {{{}, 0, 20}, {{}, 20, 30}, {{}, 0, 0}});
    check::equal(state.recurrent_floats(), std::size_t{50}, "floats");
    check::that(state.layer(0, 1, 0).recurrent.empty(), "no memory yet");
    state.set_recurrent({memory.data(), memory.size()});
    check::that(state.layer(1, 1, 0).recurrent.data() == memory.data() + 20, "begin");
    check::equal(state.layer(1, 1, 0).recurrent.size(), std::size_t{30}, "size");
    check::that(state.layer(2, 1, 0).recurrent.empty(), "none");
    check::refused([&] { state.set_recurrent({memory.data(), 49}); }, "has 49 floats; expected 50");
}

TEST(layers_that_do_not_fit_their_pages_are_refused) {
    refused(layer(1), "bytes at 1 do not fit");  // not aligned
    refused(layer(4), "do not fit a page");      // ends behind the page
    refused(layer(SIZE_MAX - 3), "do not fit a page");
    refused(layer(0, 1), "there is no table 1");
    auto wrong = layer(0);
    wrong.keys->n_kv_heads = 0;
    refused(wrong, "number of KV heads");
    wrong.keys->n_kv_heads = SIZE_MAX;
    refused(wrong, "number of KV heads");
    wrong.keys->n_kv_heads = (1u << 20) + 1;
    refused(wrong, "number of KV heads");
    wrong.keys->n_kv_heads = 1u << 20;  // the most there may be
    SequenceState({{page_rows, std::size_t{1} << 40}}, {wrong});
    wrong = layer(0);
    wrong.keys->head_dim = 577;
    refused(wrong, "heads of 577");
    wrong = layer(0);
    wrong.keys->value_dim = 0;
    refused(wrong, "and 0");
    wrong = layer(0);
    wrong.keys->type = DType::q8_0;  // 16 values are no whole block
    refused(wrong, "whole blocks of q8_0");
    wrong.keys->type = DType::q4_0;
    refused(wrong, "f32, f16 or q8_0");
    wrong = layer(0);
    wrong.keys->v_offset = 0;  // the values are in the keys
    wrong.keys->value_dim = width + 1;
    refused(wrong, "wider");
    for (const std::size_t rows : {24u, 0u, 8u, 1u << 21})
        check::refused([&] { SequenceState({{rows, 64}}, {}); },
                       "rows of a page are " + std::to_string(rows));
    check::refused([] { SequenceState({}, {{{}, SIZE_MAX, 2}}); }, "out of range");
}

TEST(pages_that_are_too_small_and_tables_that_are_not_there_are_refused) {
    Array<std::byte> page(4 * part - 1, 0);
    SequenceState state = two_layers();
    check::refused([&] { state.set_page(0, 0, {page.data(), page.size()}); }, "expected 16384");
    check::refused([&] { state.set_page(1, 0, {page.data(), page.size()}); }, "no table 1");
    check::refused([&] { state.keep_pages(1, 0, 1); }, "no table 1");
}
