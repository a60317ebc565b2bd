// The kernels in use are those that were asked for, and never those that this CPU cannot run.

#include "check.h"
#include "cpu_features.h"
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
    check::that(table.silu && table.gelu_tanh && table.gelu_erf && table.elu, "activations");
    check::that(table.sigmoid && table.swiglu && table.add, "elementwise");
    check::that(table.rms_norm && table.softmax && table.rope, "rows");
    check::that(table.from_float && table.to_float, "formats");
    check::that(table.group_rows && table.group_bytes && table.pack && table.unpack, "packing");
    check::that(table.quantize_activations && table.linear_f32, "linear");
    for (const auto& format : tensor_ops::formats)
        if (tensor_ops::is_quantized(format.type))
            check::that(table.linear_quantized_of[static_cast<std::size_t>(format.type)],
                        format.name);
    check::that(table.linear_plain && table.matmul && table.attention, "matrices");
    check::that(table.vector_floats > 0 && table.activation_tile > 0, "sizes");
    check::that(table.matmul_scratch_floats > 0 && table.attention_scratch_floats > 0, "scratch");
}

#if defined(__x86_64__)

namespace {

// Of a CPU that has all that isas.py asks for, under a system that saves all registers.
constexpr std::uint32_t fma_bit = 1u << 12, f16c_bit = 1u << 29, avx2_bit = 1u << 5;
constexpr std::uint32_t avx512_bits[] = {1u << 16, 1u << 17, 1u << 28, 1u << 30, 1u << 31};
constexpr std::uint64_t avx_state = 1u << 2, zmm_states[] = {1u << 5, 1u << 6, 1u << 7};
constexpr std::uint32_t amx_bits[] = {1u << 24, 1u << 25};
constexpr std::uint64_t tile_states[] = {1u << 17, 1u << 18};
constexpr tensor_ops::CpuidLeaves everything{.leaf1_ecx = ~0u,
                                             .leaf7_ebx = ~0u,
                                             .leaf7_ecx = ~0u,
                                             .leaf7_edx = ~0u,
                                             .leaf7_1_eax = ~0u,
                                             .states = ~std::uint64_t{0}};

// "fma avx2 ...", of the features that such a CPU has.
std::string features(const tensor_ops::CpuidLeaves& leaves) {
    const tensor_ops::CpuFeatures f = tensor_ops::features_of(leaves);
    std::string names;
    const auto add = [&](bool has, const char* name) { names += has ? name : ""; };
    add(f.fma, "fma ");
    add(f.f16c, "f16c ");
    add(f.avx2, "avx2 ");
    add(f.avxvnni, "avxvnni ");
    add(f.avx512, "avx512 ");
    add(f.avx512vnni, "avx512vnni ");
    add(f.amx_int8, "amx_int8 ");
    return names;
}

}  // namespace

TEST(a_cpu_has_the_features_whose_bits_are_set) {
    check::equal(features(everything),
                 std::string("fma f16c avx2 avxvnni avx512 avx512vnni amx_int8 "),
                 "of a CPU with everything");
    check::equal(features({.states = ~std::uint64_t{0}}), std::string(), "of a CPU with nothing");
    tensor_ops::CpuidLeaves one{.states = ~std::uint64_t{0}};
    one.leaf1_ecx = fma_bit;
    check::equal(features(one), std::string("fma "), "of one bit");
    one.leaf1_ecx = f16c_bit;
    check::equal(features(one), std::string("f16c "), "of one bit");
    one.leaf1_ecx = 0;
    one.leaf7_ebx = avx2_bit;
    check::equal(features(one), std::string("avx2 "), "of one bit");
    one.leaf7_ebx = 0;
    one.leaf7_ecx = 1u << 11;
    check::equal(features(one), std::string("avx512vnni "), "of one bit");
    one.leaf7_ecx = 0;
    one.leaf7_1_eax = 1u << 4;
    check::equal(features(one), std::string("avxvnni "), "of one bit");
}

TEST(avx512_is_all_five_parts_of_it) {
    for (const std::uint32_t missing : avx512_bits) {
        tensor_ops::CpuidLeaves leaves = everything;
        leaves.leaf7_ebx &= ~missing;
        check::equal(features(leaves), std::string("fma f16c avx2 avxvnni avx512vnni amx_int8 "),
                     "without a part");
    }
}

TEST(amx_is_its_registers_and_its_products_of_bytes) {
    for (const std::uint32_t missing : amx_bits) {
        tensor_ops::CpuidLeaves leaves = everything;
        leaves.leaf7_edx &= ~missing;
        check::equal(features(leaves), std::string("fma f16c avx2 avxvnni avx512 avx512vnni "),
                     "without a part");
    }
}

// Such a system gives other processes' registers back, or none.
TEST(what_the_system_does_not_save_is_not_used) {
    tensor_ops::CpuidLeaves leaves = everything;
    leaves.states &= ~avx_state;
    check::equal(features(leaves), std::string(), "without the state of AVX");
    leaves.states = 0;
    check::equal(features(leaves), std::string(), "without XSAVE");
    for (const std::uint64_t missing : zmm_states) {
        leaves.states = ~missing;
        check::equal(features(leaves), std::string("fma f16c avx2 avxvnni "),
                     "without a state of AVX-512");
    }
    for (const std::uint64_t missing : tile_states) {
        leaves.states = ~missing;
        check::equal(features(leaves), std::string("fma f16c avx2 avxvnni avx512 avx512vnni "),
                     "without a state of AMX");
    }
}

#endif
