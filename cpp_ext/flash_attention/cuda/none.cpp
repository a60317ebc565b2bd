// A build without CUDA.
#include "flash_attention/cuda/backend.h"
#include "flash_attention/refusal.h"

namespace tensor_ops::flash::cuda {

namespace {
[[noreturn]] void refuse_device() {
    refuse(FA_NO_DEVICE, "this build has no kernels for GPUs; it knows \"cpu\" and \"cpu:4\"");
}
}  // namespace

void open_device(int) { refuse_device(); }
std::uint64_t workspace_bytes(int, const Call&) { refuse_device(); }
void forward(int, const Call&, void*) { refuse_device(); }
void append(int, const Call&, void*) { refuse_device(); }
std::string built_kernels() { return ""; }

}  // namespace tensor_ops::flash::cuda
