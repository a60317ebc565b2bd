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

// Switches to an ISA by name, or to the best one for "".  If that ISA cannot run here, throws
// std::invalid_argument with a list of those that can.  Matrices packed before keep their kernels.
void select_isa(std::string_view name);

}  // namespace tensor_ops
