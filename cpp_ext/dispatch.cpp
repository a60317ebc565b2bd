#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#include "cpu_features.h"

namespace tensor_ops {

// TENSOR_OPS_COMPILED_ISAS is what build.py makes of isas.py: of each ISA a TENSOR_OPS_ISA(name,
// condition on `cpu`, the functions that fill in the parts of its table...).
namespace {
using Fill = void(KernelTable& table);
}  // namespace
#define TENSOR_OPS_ISA(name, condition, ...) extern Fill __VA_ARGS__;
TENSOR_OPS_COMPILED_ISAS
#undef TENSOR_OPS_ISA

namespace {

std::vector<const KernelTable*> runnable_tables() {
    [[maybe_unused]] const CpuFeatures cpu = detect_cpu_features();
    std::vector<const KernelTable*> tables;
    // The functions are compiled for their ISA, too: they must not run elsewhere.
#define TENSOR_OPS_ISA(name, condition, ...)          \
    if (condition) {                                  \
        static KernelTable table{};                   \
        for (Fill* fill : {__VA_ARGS__}) fill(table); \
        table.isa = #name;                            \
        tables.push_back(&table);                     \
    }
    TENSOR_OPS_COMPILED_ISAS
#undef TENSOR_OPS_ISA
    return tables;
}

const std::vector<const KernelTable*>& runnable() {
    static const std::vector<const KernelTable*> tables = runnable_tables();
    return tables;
}

std::string compiled_names() {
    std::string names;
#define TENSOR_OPS_ISA(name, condition, ...) names += names.empty() ? #name : ", " #name;
    TENSOR_OPS_COMPILED_ISAS
#undef TENSOR_OPS_ISA
    return names;
}

std::atomic<const KernelTable*> current{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const KernelTable* table : runnable()) names.emplace_back(table->isa);
    return names;
}

const KernelTable& kernels() { return *current.load(std::memory_order_relaxed); }

void select_isa(std::string_view name) {
    if (runnable().empty())
        throw std::invalid_argument("this build holds only kernels that this CPU cannot run (" +
                                    compiled_names() +
                                    "); rebuild without TENSOR_OPS_ISA, or with one of its ISAs");
    for (const KernelTable* table : runnable())
        if (name == table->isa) return current.store(table);
    if (name.empty()) return current.store(runnable().back());
    std::string message = "ISA '" + std::string(name) + "' cannot run here; possible:";
    for (const KernelTable* table : runnable()) message += std::string(" ") + table->isa;
    throw std::invalid_argument(message + " (compiled in: " + compiled_names() + ")");
}

}  // namespace tensor_ops
