// One part of one ISA's table.  Included at the end of isa/<name>.cpp, which build.py compiles once
// for each of its parts: TENSOR_OPS_PART_HEADER is the part's file in kernels/parts/, and
// TENSOR_OPS_PART the name of the function that fills it in.  Nothing else in an object has a name
// that the linker sees.
#pragma once

#include TENSOR_OPS_PART_HEADER

namespace tensor_ops {

void TENSOR_OPS_PART(KernelTable& table);
void TENSOR_OPS_PART(KernelTable& table) { fill<Isa>(table); }

}  // namespace tensor_ops
