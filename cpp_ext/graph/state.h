// What a sequence keeps between tokens: pages of keys and values, and the memory of recurrent ops.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "ops/attention.h"

namespace tensor_ops {

// The memory belongs to the caller; this class knows where each layer's part of it lies.  A table
// lists the pages of one or more layers.  Layers may share their keys and values.
class SequenceState {
 public:
    // The bytes of a layer in each page of a table, see KvCache.
    struct Keys {
        std::size_t table, k_offset, v_offset;
        DType type;
        std::size_t n_kv_heads, head_dim, value_dim;
    };
    struct Layer {
        std::optional<Keys> keys;
        std::size_t recurrent_first = 0, recurrent_floats = 0;
        std::optional<Keys> index = {};  // keys that select positions, without values
        // Keys that several positions have together, see groups.h, and what groups, and keys of the
        // index, are made of.
        std::optional<Keys> groups = {}, pending = {}, index_pending = {};
    };

    // The rows of a page of a table, a power of 2, and its bytes.
    struct PageSize {
        std::size_t rows, bytes;
    };

    // tables: of each one its pages' size.
    // Throws std::invalid_argument if a layer does not fit the pages of its table.
    SequenceState(const std::vector<PageSize>& tables, std::vector<Layer> layers);

    std::size_t n_layers() const { return layers_.size(); }
    std::size_t recurrent_floats() const { return recurrent_floats_; }

    // Sets a page: one of the table's, or the next one; the first of an empty table may have any
    // number.  Throws std::invalid_argument if the page is too small.
    void set_page(std::size_t table, std::size_t index, std::span<std::byte> page);
    // Takes pages away until those from `first` to `last` are left, of those that there are.
    void keep_pages(std::size_t table, std::size_t first, std::size_t last);
    // Throws std::invalid_argument unless there are recurrent_floats().
    void set_recurrent(std::span<float> memory);

    CachedSequence layer(std::size_t index, std::size_t n_tokens, std::size_t past) const;

 private:
    struct Table {
        std::vector<std::byte*> pages;  // null before `first`
        std::size_t first = 0;
        PageSize page;
    };
    const Table& table(std::size_t index) const;
    KvCache cache(const Keys& keys) const;

    std::vector<Table> tables_;
    std::vector<Layer> layers_;
    std::size_t recurrent_floats_ = 0;
    std::span<float> recurrent_;
};

}  // namespace tensor_ops
