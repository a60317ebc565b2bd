#include "graph/op_checks.h"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>

#include "ops/blocks.h"
#include "ops/groups.h"
#include "ops/recurrent.h"
#include "ops/residuals.h"
#include "ops/sparse.h"
#include "ops/streams.h"

namespace tensor_ops {

void op_fault(const Graph& graph, const Op& op, const std::string& fault) {
    const std::string output =
        op.output >= 0 && static_cast<std::size_t>(op.output) < graph.buffers.size()
            ? " -> '" + graph.buffers[static_cast<std::size_t>(op.output)].name + "'"
            : "";
    throw std::invalid_argument(std::string(op_kind_name(op.kind)) + output + ": " + fault);
}

namespace {

// The most experts of a token; the largest known models use 8 to 10.
constexpr std::size_t largest_route = 1u << 12;

// Checks one op.  The functions that op_kinds.h names check what is particular to a kind.
class OpCheck {
 public:
    OpCheck(const Graph& graph, const Op& op) : graph_(graph), op_(op) {}

    void run() const {
        const Signature& s = signature(op_.kind);
        require(op_.inputs.size() == s.inputs, "has " + std::to_string(op_.inputs.size()) +
                                                   " inputs, expected " + std::to_string(s.inputs));
        for (const int input : op_.inputs)
            require(at(input) < graph_.buffers.size(), "an input is no buffer");
        const bool output = s.outputs != Outputs::none;
        require(output == (op_.output >= 0), output ? "has no output" : "has an output");
        for (const int out : op_.outputs())
            require(at(out) < graph_.buffers.size(), "the output is no buffer");
        const auto [least, most, role] = s.weights;
        require(most > 0 || op_.weight < 0, "has a weight");
        require(least == 0 || op_.weight >= 0, "has no weight");
        const std::vector<int> weights = op_.weights();
        for (const int weight : weights)
            require(at(weight) < graph_.weights.size(), "the weight is no slot");
        const bool many = s.outputs == Outputs::many;
        require(many || op_.more_outputs.empty(), "has several outputs");
        if (many) count_weights(weights.size(), op_.outputs().size(), op_.outputs().size());
        count_weights(weights.size(), least, most);
        foreign_fields();
        (this->*checks[static_cast<std::size_t>(op_.kind)])();
    }

 private:
    // ---- the checks that the table names ----

    // The inputs are as wide as the output, which may be any of them.
    void alike() const {
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) width(i, output_width());
    }
    void tokens() const { width(0, 1); }
    void head_norm() const {
        require(op_.n_heads >= 1 && output_width() % op_.n_heads == 0,
                "the output does not divide into n_heads");
        alike();
    }
    void softcap() const {
        require(op_.cap > 0.0f, "cap is not above 0");
        alike();
    }
    void swiglu_oai() const {
        require(op_.limit > 0.0f, "limit is not above 0");
        alike();
    }
    void xielu() const {
        require(op_.eps <= 0.0f, "eps is above 0");
        alike();
    }
    void scale_shares() const {
        used_experts(largest_route);
        width(0, 2 * op_.n_used);
        alike();
    }
    void scale_rows() const {
        const std::size_t factors = input_width(1);
        width(0, output_width());
        require(factors >= 1 && output_width() % factors == 0,
                "input 1 has width " + std::to_string(factors) +
                    ", expected a divisor of the output's");
        apart(1);
    }
    void clamp() const {
        require(op_.low <= op_.high, "low is not below high");
        alike();
    }
    void linear() const { apart(0); }
    void linear_many() const {
        const std::vector<int> outputs = op_.outputs();
        for (const int output : outputs) {
            require(op_.inputs[0] != output, "cannot overwrite its input");
            require(std::count(outputs.begin(), outputs.end(), output) == 1,
                    "writes a buffer twice");
        }
    }
    void linear_add() const {
        apart(0);
        width(1, output_width());
    }
    void rope() const {
        heads(op_.n_heads);
        width(0, op_.n_heads * op_.head_dim);
        width_of(op_.output, op_.n_heads * op_.head_dim);
        require(op_.offset < op_.head_dim, "offset is not below head_dim");
        table(op_.inputs[1], op_.offset);
        require(op_.inputs[1] != op_.output, "cannot overwrite its table");
    }
    void kv_append() const {
        heads(op_.n_kv_heads);
        width(0, op_.n_kv_heads * op_.head_dim);
        values_of_heads(op_.inputs[1], op_.n_kv_heads);
    }
    void latent_append() const {
        heads(op_.n_kv_heads);
        width(0, op_.n_kv_heads * op_.head_dim);
    }
    void rope_append() const {
        table(op_.inputs[2]);
        kv_append();
    }
    void attention() const {
        heads(op_.n_heads);
        heads(op_.n_kv_heads);
        require(op_.n_heads % op_.n_kv_heads == 0, "n_heads is no multiple of n_kv_heads");
        apart(0);
        width(0, op_.n_heads * op_.head_dim);
        require(op_.cap >= 0.0f, "softcap is below 0");
        require(op_.alibi >= 0.0f, "alibi is below 0");
        require(!op_.chunked || op_.window > 0, "a chunk has no positions");
        values_of_heads(op_.output, op_.n_heads);
    }
    void index_append() const {
        heads(1);
        group();
        width(0, op_.head_dim);
    }
    void index_select() const {
        heads(op_.n_heads);
        group();
        width(0, op_.n_heads * op_.head_dim);
        width(1, op_.n_heads);
        selection(op_.output);
        apart(0);
        apart(1);
    }
    void sparse_attention() const {
        attention();
        selection(op_.inputs[1]);
        apart(1);
    }
    void block_mean() const {
        block_size();
        alike();
    }
    void choose_blocks() const {
        heads(op_.n_heads);
        width(0, op_.n_heads * op_.head_dim);
        apart(0);
        require(op_.n_chosen >= 1 && op_.n_chosen <= most_selected,
                "n_chosen is " + std::to_string(op_.n_chosen) + ", expected 1 to " +
                    std::to_string(most_selected));
        require(op_.n_local <= (op_.pooled ? 0 : op_.n_chosen), "n_local is too large");
        const BlockCall call{.q = nullptr,
                             .n_heads = op_.n_heads,
                             .block_size = op_.block_size,
                             .n_chosen = op_.n_chosen,
                             .n_local = op_.n_local,
                             .pooled = op_.pooled,
                             .out = nullptr,
                             .sequences = {}};
        blocks(call.n_entries());
        width_of(op_.output, call.n_choices() * call.n_entries());
    }
    void block_attention() const {
        attention();
        apart(1);
        const std::size_t n = op_.n_choices;
        require(n >= 1 && op_.n_kv_heads % n == 0 && input_width(1) % n == 0,
                "the KV heads, or the blocks, do not divide into n_choices");
        blocks(input_width(1) / n);
    }
    void pool_groups() const {
        group();
        require(op_.n_parts == 1 || op_.n_parts == 2, "n_parts is not 1 or 2");
        require(output_width() >= 1 && output_width() <= attention_max_head_dim,
                "the output's width is " + std::to_string(output_width()) + ", expected 1 to " +
                    std::to_string(attention_max_head_dim));
        for (std::size_t i = 0; i < 2; ++i) {
            width(i, op_.n_parts * output_width());
            apart(i);
        }
    }
    void group_attention() const {
        heads(op_.n_heads);
        group();
        require(op_.window >= 1, "window is 0");
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
        width(0, op_.n_heads * op_.head_dim);
        width_of(op_.output, op_.n_heads * op_.head_dim);
    }
    void sparse_group_attention() const {
        group_attention();
        selection(op_.inputs[1]);
    }
    void route_to() const {
        experts(input_width(0));
        width(1, op_.n_used);
        width_of(op_.output, 2 * op_.n_used);
    }
    void route() const {
        const std::size_t n = input_width(0), groups = op_.n_groups, used = op_.n_groups_used;
        require(groups >= 1 && n % groups == 0,
                std::to_string(n) + " experts are no " + std::to_string(groups) + " equal groups");
        require(used >= 1 && used <= groups, "n_groups_used is " + std::to_string(used) +
                                                 ", expected 1 to " + std::to_string(groups));
        require(used == groups || op_.group_score == GroupScore::max || n / groups >= 2,
                "a group is one expert, expected two or more");
        experts(used * (n / groups));
        width_of(op_.output, 2 * op_.n_used);
    }
    void expert_linear() const {
        experts(largest_route);
        require(output_width() % op_.n_used == 0, "the output does not divide into n_used");
        width(1, 2 * op_.n_used);
    }
    void head_linear() const {
        of_each_head(op_.inputs[0]);
        of_each_head(op_.output);
        apart(0);
    }
    void take_head_columns() const {
        const std::size_t own = of_each_head(op_.inputs[0]), taken = of_each_head(op_.output);
        apart(0);
        require(op_.offset <= own && taken <= own - op_.offset,
                "columns from " + std::to_string(op_.offset) + " to " +
                    std::to_string(op_.offset + taken) + " of " + std::to_string(own));
    }
    void join_heads() const {
        const std::size_t a = of_each_head(op_.inputs[0]), b = of_each_head(op_.inputs[1]);
        apart(0);
        apart(1);
        width_of(op_.output, op_.n_heads * (a + b));
    }
    void of_experts() const {
        used_experts(largest_route);
        require(output_width() % op_.n_used == 0, "the output does not divide into n_used");
        width(0, output_width());
        width(1, 2 * op_.n_used);
        apart(1);
    }
    void expert_sum() const {
        experts(largest_route);
        width(0, op_.n_used * output_width());
        width(1, 2 * op_.n_used);
    }
    void conv() const {
        require(op_.taps >= 1 && op_.taps <= conv_max_taps, "taps is " + std::to_string(op_.taps) +
                                                                ", expected 1 to " +
                                                                std::to_string(conv_max_taps));
        require(op_.dilation >= 1 && op_.dilation <= most_dilation,
                "dilation is " + std::to_string(op_.dilation) + ", expected 1 to " +
                    std::to_string(most_dilation));
        alike();
    }
    void delta_rule() const {
        const std::size_t heads = op_.n_heads, keys = op_.n_kv_heads, decays = input_width(3);
        require(heads >= 1 && keys >= 1 && heads % keys == 0,
                "n_heads is no multiple of n_kv_heads");
        const std::size_t d_k = input_width(0) / keys;
        require(d_k >= 1 && d_k <= delta_rule_max_key_dim,
                "keys of " + std::to_string(d_k) + ", expected 1 to " +
                    std::to_string(delta_rule_max_key_dim));
        width(0, keys * d_k);
        width(1, keys * d_k);
        width(2, output_width());
        require(output_width() % heads == 0 && output_width() / heads <= longest_row / d_k,
                "the output does not divide into n_heads");
        require(decays == heads || decays == heads * d_k, "the decay's width is " +
                                                              std::to_string(decays) +
                                                              ", expected one for each head, "
                                                              "or for each of its keys");
        width(4, heads);
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }
    void ssm_scan() const {
        const std::size_t heads = input_width(1), groups = op_.n_groups;
        require(heads >= 1 && output_width() % heads == 0, "the output does not divide into heads");
        require(groups >= 1 && heads % groups == 0 && input_width(2) % groups == 0,
                "n_groups does not divide the heads, or b");
        width(0, output_width());
        width(3, input_width(2));
        require(output_width() <= longest_row / std::max<std::size_t>(1, input_width(2) / groups),
                "the state is too large");
        require(op_.dt_min >= 0.0f && op_.dt_min <= op_.dt_max, "dt_min is not below dt_max");
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }
    void selective_scan() const {
        width(0, output_width());
        width(1, output_width());
        width(3, input_width(2));
        require(output_width() <= longest_row / std::max<std::size_t>(1, input_width(2)),
                "the state is too large");
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }
    void log_decay() const {
        require(op_.bound <= 0.0f, "bound is above 0");
        alike();
    }
    void residual_attention() const {
        const std::size_t n = output_width();
        width(0, n);
        require(n >= 1 && input_width(1) % n == 0,
                "the width of earlier rows is no multiple of x's");
        const std::size_t most = std::min(input_width(1) / n, residual_attention_max_earlier);
        require(op_.n_earlier >= 1 && op_.n_earlier <= most,
                "n_earlier is " + std::to_string(op_.n_earlier) + ", expected 1 to " +
                    std::to_string(most));
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }
    void group_norm() const {
        require(op_.n_groups >= 1 && output_width() % op_.n_groups == 0,
                "the output does not divide into n_groups");
        alike();
    }
    void round_q8() const {
        whole_blocks(output_width());
        alike();
    }
    void merge_add() const {
        width(0, output_width());
        require(op_.inputs[1] != op_.output, "cannot overwrite its parts");
        require(output_width() >= 1 && input_width(1) % output_width() == 0,
                "the parts' width is no multiple of the output's");
        if (op_.quantized) whole_blocks(output_width());
    }
    void take_columns() const { columns(op_.inputs[0], op_.output); }
    void put_columns() const {
        require(graph_.buffers[at(op_.output)].external, "writes a part of its buffer");
        columns(op_.output, op_.inputs[0]);
    }

    void mix_streams() const {
        const std::size_t from = op_.n_streams, all = input_width(0), factors = input_width(1);
        apart(0);
        apart(1);
        require(from >= 1 && all % from == 0 && factors % from == 0,
                "the inputs do not divide into n_streams");
        width_of(op_.output, factors / from * (all / from));
    }
    void stream_products() const {
        const std::size_t n = op_.n_streams;
        require(n >= 1 && input_width(0) % n == 0, "the inputs do not divide into n_streams");
        width(1, input_width(0));
        apart(0);
        apart(1);
        width_of(op_.output, n);
    }
    void signed_root() const {
        require(op_.least >= 0.0f, "least is below 0");
        alike();
    }
    void hyper_factors() const {
        const std::size_t n = op_.n_streams;
        require(n >= 1 && n <= most_hyper_streams, "n_streams is out of range");
        require(op_.n_iterations >= 1 && op_.n_iterations <= 1u << 16,
                "n_iterations is out of range");
        require(output_width() == n || output_width() == n * (2 + n),
                "the output does not fit n_streams");
        width(0, output_width());
        apart(0);
    }
    void hyper_mix() const {
        const std::size_t n = op_.n_streams;
        require(n >= 1 && n <= most_hyper_streams, "n_streams is out of range");
        require(output_width() % n == 0, "the output does not divide into n_streams");
        width(0, output_width());
        width(1, output_width() / n);
        width(2, n * (2 + n));
        apart(1);
        apart(2);
    }
    void add_to_streams() const {
        width(0, output_width());
        require(input_width(1) >= 1 && output_width() % input_width(1) == 0,
                "the output's width is no multiple of what is added");
        apart(1);
    }
    void match_rms() const { add_to_streams(); }
    void layer_columns() const {
        apart(0);
        require(output_width() >= 1 && input_width(0) % output_width() == 0,
                "the input's width is no multiple of the output's");
    }

    // ---- what they have in common ----

    // Checks that an op has no field of other kinds: some say how much is read of the memory of a
    // sequence, and the executor looks at them before it looks at the kind.
    void foreign_fields() const {
        using enum OpKind;
        const auto only = [&](bool has, const char* field, std::initializer_list<OpKind> kinds) {
            require(!has || std::find(kinds.begin(), kinds.end(), op_.kind) != kinds.end(),
                    std::string("has no ") + field);
        };
        only(op_.every != 1, "every",
             {index_append, index_select, pool_groups, group_append, group_attention,
              sparse_group_attention});
        only(op_.block_size != 1, "block_size", {block_mean, choose_blocks, block_attention});
        only(op_.pooled, "pooled", {choose_blocks});
        only(op_.n_choices != 1, "n_choices", {block_attention});
        only(op_.window != 0, "window", {attention, group_attention, sparse_group_attention});
        only(op_.chunked, "chunked", {attention});
    }

    static std::size_t at(int i) { return static_cast<std::size_t>(i); }
    void require(bool truth, const std::string& fault) const {
        if (!truth) op_fault(graph_, op_, fault);
    }
    std::size_t output_width() const { return graph_.buffers[at(op_.output)].width; }
    void count_weights(std::size_t n, std::size_t least, std::size_t most) const {
        require(n >= least && n <= most, "has " + std::to_string(n) + " weights, expected " +
                                             std::to_string(least) +
                                             (least < most ? " to " + std::to_string(most) : ""));
    }
    // Checks that an input is not the output.
    void apart(std::size_t input) const {
        require(op_.inputs[input] != op_.output, "cannot overwrite its input");
    }
    void width_of(int buffer, std::size_t expected) const {
        const Buffer& b = graph_.buffers[at(buffer)];
        require(b.width == expected, "buffer '" + b.name + "' has width " +
                                         std::to_string(b.width) + ", expected " +
                                         std::to_string(expected));
    }
    void width(std::size_t input, std::size_t expected) const {
        width_of(op_.inputs[input], expected);
    }
    void table(int buffer, std::size_t offset = 0) const {
        const std::size_t dims = graph_.buffers[at(buffer)].width, most = op_.head_dim - offset;
        require(dims % 2 == 0 && dims <= most, "the table's width is " + std::to_string(dims) +
                                                   ", expected an even number up to head_dim " +
                                                   std::to_string(most));
    }
    void group() const {
        require(op_.every >= 1 && op_.every <= most_in_group,
                "every is " + std::to_string(op_.every) + ", expected 1 to " +
                    std::to_string(most_in_group));
    }
    void heads(std::size_t n) const {
        require(n >= 1 && n <= 1u << 20, "the number of heads is out of range");
        require(op_.head_dim >= 1 && op_.head_dim <= attention_max_head_dim,
                "head_dim is " + std::to_string(op_.head_dim) + ", expected 1 to " +
                    std::to_string(attention_max_head_dim));
    }
    // Checks a buffer with the positions that each token sees.
    void selection(int buffer) const {
        const std::size_t n = graph_.buffers[at(buffer)].width;
        require(n >= 1 && n <= most_selected, "selects " + std::to_string(n) +
                                                  " positions, expected 1 to " +
                                                  std::to_string(most_selected));
    }
    void block_size() const {
        require(op_.block_size >= 1 && op_.block_size <= most_in_group,
                "block_size is " + std::to_string(op_.block_size) + ", expected 1 to " +
                    std::to_string(most_in_group));
    }
    // Checks how many blocks each token sees.
    void blocks(std::size_t n) const {
        block_size();
        require(n >= 1 && n <= most_selected / op_.block_size,
                std::to_string(n) + " blocks of " + std::to_string(op_.block_size) +
                    " positions; expected 1 to " + std::to_string(most_selected) + " positions");
    }
    // The width of each head of a buffer.
    std::size_t of_each_head(int buffer) const {
        const Buffer& b = graph_.buffers[at(buffer)];
        require(op_.n_heads >= 1 && b.width % op_.n_heads == 0,
                "buffer '" + b.name + "' has width " + std::to_string(b.width) + ", no " +
                    std::to_string(op_.n_heads) + " heads");
        return b.width / op_.n_heads;
    }
    // Checks a buffer with the values of n heads.
    void values_of_heads(int buffer, std::size_t n) const {
        const std::size_t all = graph_.buffers[at(buffer)].width;
        require(all >= n && all % n == 0 && all / n <= attention_max_head_dim,
                "buffer '" + graph_.buffers[at(buffer)].name + "' has width " +
                    std::to_string(all) + ", no values of " + std::to_string(n) + " heads");
    }

    std::size_t input_width(std::size_t input) const {
        return graph_.buffers[at(op_.inputs[input])].width;
    }
    void whole_blocks(std::size_t n) const {
        require(n % quant_block == 0, std::to_string(n) + " values are no whole blocks of " +
                                          std::to_string(quant_block));
    }
    // Checks that `whole` has as many columns from the offset on as `part` is wide.
    void columns(int whole, int part) const {
        const std::size_t n = graph_.buffers[at(part)].width, all = graph_.buffers[at(whole)].width;
        require(whole != part, "cannot overwrite its input");
        require(op_.offset <= all && n <= all - op_.offset,
                "columns from " + std::to_string(op_.offset) + " to " +
                    std::to_string(op_.offset + n) + " of " + std::to_string(all));
        if (!op_.quantized) return;
        whole_blocks(n);
        whole_blocks(op_.offset);
    }

    void used_experts(std::size_t most) const {
        require(op_.n_used >= 1 && op_.n_used <= std::min(most, largest_route),
                "n_used is " + std::to_string(op_.n_used) + ", expected 1 to " +
                    std::to_string(std::min(most, largest_route)));
    }
    void experts(std::size_t most) const {
        used_experts(most);
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }

#define TENSOR_OPS_CHECK(kind, inputs, outputs, weights, check) &OpCheck::check,
    static constexpr void (OpCheck::* checks[])() const = {TENSOR_OPS_OP_KINDS(TENSOR_OPS_CHECK)};
#undef TENSOR_OPS_CHECK

    const Graph& graph_;
    const Op& op_;
};

}  // namespace

void check_op(const Graph& graph, const Op& op) { OpCheck(graph, op).run(); }

}  // namespace tensor_ops
