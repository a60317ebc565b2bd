#include "flash_attention/context.h"

#include <algorithm>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <string_view>

#include "dispatch.h"
#include "flash_attention/cuda/backend.h"
#include "threads/cpu_budget.h"
#include "threads/team.h"

namespace tensor_ops::flash {
namespace {

constexpr int most_threads = 1024;

thread_local fa_status last_status = FA_OK;
thread_local char last_reason[sizeof(Refusal::text)] = "";

// The kernels for this CPU, or those that TENSOR_OPS_ISA names.
const KernelTable& selected_kernels() {
    static std::once_flag once;
    std::call_once(once, [] {
        const char* name = std::getenv("TENSOR_OPS_ISA");
        try {
            select_isa(name ? name : "");
        } catch (const std::invalid_argument& error) {
            refuse(FA_NO_KERNEL, "%s", error.what());
        }
    });
    return kernels();
}

// The number behind the colon of a device's name; `low` to `high`, or -1.
int number_in(std::string_view name, int low, int high) {
    const char* const first = name.data() + std::min(name.find(':') + 1, name.size());
    const char* const last = name.data() + name.size();
    int number = -1;
    const auto [end, error] = std::from_chars(first, last, number);
    return error == std::errc{} && end == last && low <= number && number <= high ? number : -1;
}

// The threads that "cpu" or "cpu:4" asks for.
int threads_of(std::string_view device) {
    if (device == "cpu") return cpu_budget().chosen;
    const int threads = number_in(device, 1, most_threads);
    if (threads < 0)
        refuse(FA_INVALID, "device is \"%.40s\"; expected 1 to %d threads, as in \"cpu:4\"",
               device.data(), most_threads);
    return threads;
}

int gpu_of(std::string_view device) {
    const int gpu = device == "cuda" ? 0 : number_in(device, 0, most_threads);
    if (gpu < 0)
        refuse(FA_INVALID, "device is \"%.40s\"; expected a number, as in \"cuda:0\"",
               device.data());
    return gpu;
}

// Lets the team have that many threads, and starts them, so that no call has to. (Where another
// context's call has the team meanwhile, a later call starts them.)
void prepare_team(int threads) {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    set_num_threads(std::max(threads, num_threads()));
    run_team([](const Worker&) {}, threads);
}

}  // namespace

void refuse(fa_status status, const char* format, ...) {
    Refusal refusal{status, ""};
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(refusal.text, sizeof refusal.text, format, arguments);
    va_end(arguments);
    throw refusal;
}

fa_status remember(fa_status status, const char* reason) {
    last_status = status;
    std::snprintf(last_reason, sizeof last_reason, "%s", reason);
    return status;
}

fa_status status_of_exception() {
    try {
        throw;
    } catch (const Refusal& refusal) {
        return remember(refusal.status, refusal.text);
    } catch (const std::bad_alloc&) {
        return remember(FA_OUT_OF_MEMORY, "there is not enough memory");
    } catch (const std::exception& error) {
        return remember(FA_DEVICE_ERROR, error.what());
    } catch (...) {
        return remember(FA_DEVICE_ERROR, "the system failed");
    }
}

const fa_context& checked(const fa_context* context, const void* stream) {
    if (!context) refuse(FA_INVALID, "context is NULL; fa_context_create makes one");
    if (stream && context->table)
        refuse(FA_INVALID, "stream is %p; expected NULL, as a CPU has no streams", stream);
    return *context;
}

}  // namespace tensor_ops::flash

using namespace tensor_ops;
using namespace tensor_ops::flash;

fa_status fa_context_create(const char* device, fa_context** context) {
    return guarded([&] {
        if (!context) refuse(FA_INVALID, "context is NULL; expected where to put the new context");
        *context = nullptr;
        if (!device) refuse(FA_INVALID, "device is NULL; expected \"cpu\" or \"cpu:4\"");
        const std::string_view name(device), kind = name.substr(0, name.find(':'));
        if (kind == "cuda") {
            const int gpu = gpu_of(name);
            cuda::open_device(gpu);
            *context = new fa_context{0, nullptr, gpu};
            return;
        }
        if (kind != "cpu")
            refuse(
                FA_NO_DEVICE,
                "device is \"%.40s\"; there are \"cpu\", \"cpu:4\", and in some builds \"cuda:0\"",
                device);
        const int threads = threads_of(name);
        const KernelTable& table = selected_kernels();
        prepare_team(threads);
        *context = new fa_context{threads, &table, -1};
    });
}

void fa_context_destroy(fa_context* context) { delete context; }

const char* fa_last_error(void) { return last_reason; }

fa_status fa_last_status(void) { return last_status; }

uint32_t fa_version(void) { return FA_VERSION; }

const char* fa_build_info(void) {
    try {
        static const std::string info = [] {
            std::string text = std::to_string(FA_VERSION / 1000000) + "." +
                               std::to_string(FA_VERSION / 1000 % 1000) + "." +
                               std::to_string(FA_VERSION % 1000) + "; cpu:";
            try {
                for (const std::string& isa : available_isas()) text += " " + isa;
                text += std::string(", in use ") + selected_kernels().isa;
            } catch (const Refusal& refusal) {
                text += std::string(", ") + refusal.text;
            }
            return text + cuda::built_kernels();
        }();
        return info.c_str();
    } catch (...) {
        return "there is not enough memory to say it";
    }
}
