// The kernels in use are those that were asked for, and never those that this CPU cannot run.

#include "check.h"
#include "dispatch.h"

using tensor_ops::available_isas;
using tensor_ops::kernels;
using tensor_ops::select_isa;

TEST(an_isa_is_selected_by_name) {
    for (const std::string& isa : available_isas()) {
        select_isa(isa);
        check::equal(std::string(kernels().isa), isa, "the ISA in use");
    }
    select_isa("");
}

TEST(the_best_isa_is_the_last_one_and_is_taken_unless_one_is_named) {
    select_isa(available_isas().front());
    select_isa("");
    check::equal(std::string(kernels().isa), available_isas().back(), "the ISA in use");
}

TEST(a_name_that_cannot_run_is_refused_and_changes_nothing) {
    const std::string before = kernels().isa;
    for (const char* name : {"avx9", "AVX2", "scalar ", "../scalar"}) {
        check::refused([name] { select_isa(name); },
                       "ISA '" + std::string(name) + "' cannot run here; possible:");
        for (const std::string& isa : available_isas())
            check::refused([name] { select_isa(name); }, isa);
    }
    check::equal(std::string(kernels().isa), before, "the ISA in use");
}

// A member left out of an ISA's table would be null.
KERNEL_TEST(a_table_is_complete) {
    check::that(table.silu && table.gelu_tanh && table.gelu_erf && table.swiglu && table.add,
                "elementwise");
    check::that(table.rms_norm && table.softmax && table.rope, "rows");
    check::that(table.from_float && table.to_float, "formats");
    check::that(table.group_rows && table.group_bytes && table.pack && table.unpack, "packing");
    check::that(table.quantize_activations && table.linear_quantized && table.linear_f32, "linear");
    check::that(table.linear_plain && table.matmul && table.attention, "matrices");
    check::that(table.vector_floats > 0 && table.activation_tile > 0, "sizes");
    check::that(table.matmul_scratch_floats > 0 && table.attention_scratch_floats > 0, "scratch");
}
