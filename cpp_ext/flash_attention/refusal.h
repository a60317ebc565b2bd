// Why a call is refused, as an exception that does not leave the library.
#pragma once

#include "flash_attention/flash_attn.h"

namespace tensor_ops::flash {

struct Refusal {
    fa_status status;
    char text[320];
};

// Throws a Refusal; the format and its arguments are those of printf.
[[noreturn, gnu::format(printf, 2, 3)]] void refuse(fa_status status, const char* format, ...);

}  // namespace tensor_ops::flash
