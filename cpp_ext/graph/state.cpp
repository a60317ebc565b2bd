#include "graph/state.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

namespace tensor_ops {
namespace {

// Far beyond any model, but no product of a page's sizes overflows.
constexpr std::size_t most_heads = 1u << 20, most_page_rows = 1u << 20, most_pages = 1u << 24;
constexpr std::size_t most_recurrent_floats = std::size_t{1} << 40;

[[noreturn]] void fault(const std::string& message) { throw std::invalid_argument(message); }

std::string in_layer(std::size_t index) { return "layer " + std::to_string(index) + ": "; }

bool has_width(DType type, std::size_t n) {
    return n >= 1 && n <= attention_max_head_dim && n % block_size(type).elements == 0;
}

void check_page(const SequenceState::PageSize& page) {
    if (page.rows < attention_page_unit || page.rows > most_page_rows ||
        !std::has_single_bit(page.rows))
        fault("the rows of a page are " + std::to_string(page.rows) +
              "; expected a power of 2 from " + std::to_string(attention_page_unit) + " on");
}

void check_keys(const SequenceState::Keys& keys, const SequenceState::PageSize& page,
                const std::string& where) {
    if (keys.type != DType::f32 && keys.type != DType::f16 && keys.type != DType::q8_0)
        fault(where + "keys and values are f32, f16 or q8_0");
    if (keys.n_kv_heads < 1 || keys.n_kv_heads > most_heads)
        fault(where + "the number of KV heads is out of range");
    if (!has_width(keys.type, keys.head_dim) || !has_width(keys.type, keys.value_dim))
        fault(where + "heads of " + std::to_string(keys.head_dim) + " and " +
              std::to_string(keys.value_dim) + "; expected 1 to " +
              std::to_string(attention_max_head_dim) + ", in whole blocks of " +
              dtype_name(keys.type));
    const bool values_in_keys = keys.k_offset == keys.v_offset;
    if (values_in_keys && keys.value_dim > keys.head_dim)
        fault(where + "the values in the keys are wider than these");
    const auto check_part = [&](std::size_t offset, std::size_t width) {
        const std::size_t bytes = keys.n_kv_heads * page.rows * row_bytes(keys.type, width);
        if (offset % alignof(float) || offset > page.bytes || bytes > page.bytes - offset)
            fault(where + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                  " do not fit a page of " + std::to_string(page.bytes) + " bytes");
    };
    check_part(keys.k_offset, keys.head_dim);
    check_part(keys.v_offset, keys.value_dim);
}

}  // namespace

SequenceState::SequenceState(const std::vector<PageSize>& tables, std::vector<Layer> layers)
    : layers_(std::move(layers)) {
    for (const PageSize& page : tables) {
        check_page(page);
        tables_.push_back({{}, 0, page});
    }
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        for (const std::optional<Keys>& keys :
             {layer.keys, layer.index, layer.groups, layer.pending, layer.index_pending}) {
            if (!keys) continue;
            if (keys->table >= tables_.size())
                fault(in_layer(i) + "there is no table " + std::to_string(keys->table));
            check_keys(*keys, tables_[keys->table].page, in_layer(i));
        }
        if (layer.recurrent_first > most_recurrent_floats ||
            layer.recurrent_floats > most_recurrent_floats)
            fault(in_layer(i) + "the recurrent memory is out of range");
        recurrent_floats_ =
            std::max(recurrent_floats_, layer.recurrent_first + layer.recurrent_floats);
    }
}

const SequenceState::Table& SequenceState::table(std::size_t index) const {
    if (index >= tables_.size()) fault("there is no table " + std::to_string(index));
    return tables_[index];
}

void SequenceState::set_page(std::size_t index, std::size_t number, std::span<std::byte> page) {
    if (page.size() < table(index).page.bytes)
        fault("a page has " + std::to_string(page.size()) + " bytes; expected " +
              std::to_string(table(index).page.bytes));
    Table& t = tables_[index];
    const bool empty = t.first == t.pages.size();
    if (number >= most_pages || (!empty && (number < t.first || number > t.pages.size())))
        fault("page " + std::to_string(number) + " does not follow the table's pages " +
              std::to_string(t.first) + " to " + std::to_string(t.pages.size()));
    if (empty) {
        t.pages.assign(number, nullptr);
        t.first = number;
    }
    if (number == t.pages.size()) t.pages.push_back(nullptr);
    t.pages[number] = page.data();
}

void SequenceState::keep_pages(std::size_t index, std::size_t first, std::size_t last) {
    table(index);
    Table& t = tables_[index];
    t.pages.resize(std::min(t.pages.size(), last));
    const std::size_t kept = std::min(std::max(t.first, first), t.pages.size());
    std::fill_n(t.pages.begin(), kept, nullptr);
    t.first = kept;
}

void SequenceState::set_recurrent(std::span<float> memory) {
    if (memory.size() != recurrent_floats_)
        fault("the recurrent memory has " + std::to_string(memory.size()) + " floats; expected " +
              std::to_string(recurrent_floats_));
    recurrent_ = memory;
}

KvCache SequenceState::cache(const Keys& keys) const {
    const Table& t = tables_[keys.table];
    return {.type = keys.type,
            .n_kv_heads = keys.n_kv_heads,
            .capacity = t.pages.size() * t.page.rows,
            .head_dim = keys.head_dim,
            .value_dim = keys.value_dim,
            .pages = t.pages.data(),
            .page_bits = static_cast<std::size_t>(std::countr_zero(t.page.rows)),
            .k_offset = keys.k_offset,
            .v_offset = keys.v_offset,
            .first = t.first * t.page.rows};
}

CachedSequence SequenceState::layer(std::size_t index, std::size_t n_tokens,
                                    std::size_t past) const {
    const Layer& layer = layers_[index];
    CachedSequence found{.n_tokens = n_tokens, .past = past, .cache = {}};
    if (layer.keys) found.cache = cache(*layer.keys);
    if (layer.index) found.index = cache(*layer.index);
    if (layer.groups) found.groups = cache(*layer.groups);
    if (layer.pending) found.pending = cache(*layer.pending);
    if (layer.index_pending) found.index_pending = cache(*layer.index_pending);
    if (!recurrent_.empty())
        found.recurrent = recurrent_.subspan(layer.recurrent_first, layer.recurrent_floats);
    return found;
}

}  // namespace tensor_ops
