// Picks the kernels: the best ISA that was compiled in and that this CPU runs, or one by name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace tensor_ops {

// Names of the ISAs that can run here, slowest first.
std::vector<std::string> available_isas();

// The kernels in use; select_isa must have succeeded once.
const KernelTable& kernels();

// Switches to an ISA by name, or to the best one for "".  Throws std::invalid_argument, listing
// those that can run here, when that one cannot.  Matrices packed before keep their own kernels.
void select_isa(std::string_view name);

}  // namespace tensor_ops
