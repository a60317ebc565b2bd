// Calls on a GPU. Without CUDA, none.cpp stands in for backend.cu.
#pragma once

#include <cstdint>
#include <string>

#include "flash_attention/call.h"

namespace tensor_ops::flash::cuda {

// Refuses a device that is not there.
void open_device(int device);
// Refuses what the kernels of this build do not do.
std::uint64_t workspace_bytes(int device, const Call& call);
void forward(int device, const Call& call, void* stream);
void append(int device, const Call& call, void* stream);
// "; cuda: hdim64_f16 ...", or nothing.
std::string built_kernels();

}  // namespace tensor_ops::flash::cuda
