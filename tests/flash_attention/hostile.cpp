// Calls the attention library with hostile parameter structs: valid ones with some fields changed,
// and random bytes. None may crash, and one that is refused may write nothing.
//
//     hostile FIRST COUNT    the structs of these numbers; each is made from its number alone
//
// The library cannot know where a caller's memory ends. So a struct that it would accept runs only
// if all its memory lies in the arena here, and arrays are read only if they do.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include "flash_attention/flash_attn.h"

namespace {

constexpr std::size_t arena_bytes = 1 << 16, most_numbers = 1024;
alignas(64) std::byte arena[arena_bytes], untouched[arena_bytes];
std::int32_t numbers[most_numbers];

constexpr fa_tensor fa_fwd_params::* tensors[] = {
    &fa_fwd_params::q,          &fa_fwd_params::k,          &fa_fwd_params::v,
    &fa_fwd_params::k_new,      &fa_fwd_params::v_new,      &fa_fwd_params::q_v,
    &fa_fwd_params::out,        &fa_fwd_params::lse,        &fa_fwd_params::sinks,
    &fa_fwd_params::rotary_cos, &fa_fwd_params::rotary_sin, &fa_fwd_params::q_descale,
    &fa_fwd_params::k_descale,  &fa_fwd_params::v_descale};
constexpr const std::int32_t* fa_fwd_params::* arrays[] = {
    &fa_fwd_params::cu_seqlens_q, &fa_fwd_params::cu_seqlens_k, &fa_fwd_params::cu_seqlens_k_new,
    &fa_fwd_params::seqused_q,    &fa_fwd_params::seqused_k,    &fa_fwd_params::page_table,
    &fa_fwd_params::kv_batch_idx, &fa_fwd_params::leftpad_k,    &fa_fwd_params::seqlens_rotary};
constexpr std::int32_t fa_fwd_params::* shorts[] = {
    &fa_fwd_params::max_seqlen_q, &fa_fwd_params::max_seqlen_k,    &fa_fwd_params::window_left,
    &fa_fwd_params::window_right, &fa_fwd_params::attention_chunk, &fa_fwd_params::num_splits,
    &fa_fwd_params::pack_gqa,     &fa_fwd_params::sm_margin};
constexpr std::int64_t fa_fwd_params::* longs[] = {
    &fa_fwd_params::batch, &fa_fwd_params::page_table_stride, &fa_fwd_params::page_table_columns};
// One of these is in each reason of a refusal.
constexpr std::string_view names[] = {
    "q",       "k",       "v",       "out",     "lse",   "sinks",     "rotary",   "descale",
    "seq",     "page",    "batch",   "window",  "chunk", "splits",    "pack_gqa", "sm_margin",
    "softmax", "softcap", "leftpad", "partial", "flags", "workspace", "params"};

class Random {
 public:
    explicit Random(std::uint64_t seed) : engine_(seed) {}
    std::uint64_t bits() { return engine_(); }
    std::size_t below(std::size_t n) { return bits() % n; }
    bool chance(unsigned percent) { return below(100) < percent; }
    template <class T>
    const T& of(std::span<const T> list) {
        return list[below(list.size())];
    }

 private:
    std::mt19937_64 engine_;
};

std::int64_t hostile_number(Random& random) {
    static constexpr std::int64_t extremes[] = {-1,        0,           1,         2,
                                                3,         7,           16,        33,
                                                INT32_MAX, INT32_MIN,   INT64_MAX, INT64_MIN,
                                                1ll << 31, 1ll << 33,   1ll << 46, (1ll << 46) + 1,
                                                1ll << 62, -(1ll << 46)};
    return random.chance(20) ? static_cast<std::int64_t>(random.bits())
                             : random.of(std::span<const std::int64_t>(extremes));
}

// ---- valid structs
// -------------------------------------------------------------------------------

class Base {
 public:
    fa_fwd_params params = fa_fwd_defaults();

    explicit Base(Random& random) {
        std::fill_n(numbers, most_numbers, -1);
        const std::size_t layout = random.below(5);
        turns_ = random.chance(30);
        const std::int64_t d = layout == 1 || random.chance(50) ? 32 : 16, h_k = 2, h = 4;
        const std::int32_t types[] = {FA_F32, FA_F16, FA_BF16, FA_E4M3};
        const std::int32_t q = types[random.below(4)], kv = types[random.below(4)];
        fa_fwd_params& p = params;
        const bool together = random.chance(30);
        p.q = together ? tensor(q, {6, h, d}) : tensor(q, {2, 3, h, d});
        p.out = together ? tensor(FA_F32, {6, h, d}) : tensor(FA_F32, {2, 3, h, d});
        if (random.chance(50))
            p.lse = together ? tensor(FA_F32, {h, 6}) : tensor(FA_F32, {2, h, 3});
        if (together) {
            p.cu_seqlens_q = array({0, 3, 6});
            p.batch = 2;
            p.max_seqlen_q = 3;
        }
        if (random.chance(30)) p.seqused_q = array({3, 1});
        if (layout == 0) {
            cache(kv, {32, h_k, d});
            p.cu_seqlens_k = array({0, 12, 32});
            p.max_seqlen_k = 20;
        } else if (layout == 1) {
            cache(FA_Q8_0, {2, 16, h_k, d});
        } else if (layout == 2) {
            cache(kv, {6, 8, h_k, d});
            p.page_table = array({5, 1, 0, 2, 3, 4});
            p.page_table_columns = 3;
        } else if (layout == 3) {
            cache(kv, {4, 20, h_k, d});
            p.kv_batch_idx = array({3, 1});
        } else {
            cache(kv, {2, 20, h_k, d});
        }
        if (layout >= 2) {
            p.seqused_k = array({14, 3});
            if (random.chance(40)) p.leftpad_k = array({2, 0});
            if (random.chance(60)) {
                const std::int32_t type = kv == FA_E4M3 ? kv : FA_F32;
                p.k_new = tensor(type, {2, 3, h_k, d});
                p.v_new = tensor(type, {2, 3, h_k, d});
                if (random.chance(50) && kv != FA_E4M3 && q != FA_E4M3) {
                    p.rotary_cos = tensor(FA_F32, {32, d / 4});
                    p.rotary_sin = tensor(FA_F32, {32, d / 4});
                    if (random.chance(50)) p.seqlens_rotary = array({14, 3});
                }
            }
        }
        finish(random);
    }

    fa_tensor tensor(std::int32_t type, std::initializer_list<std::int64_t> shape) {
        fa_tensor made{};
        made.type = type;
        made.rank = static_cast<std::int32_t>(shape.size());
        std::copy(shape.begin(), shape.end(), made.shape);
        contiguous(made);
        made.data = arena + used_;
        std::size_t bytes = type == FA_F32 ? 4 : type == FA_E4M3 ? 1 : 2;
        for (const std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
        used_ += (bytes + 127) / 64 * 64;
        if (used_ > arena_bytes) std::abort();
        return made;
    }

 private:
    static void contiguous(fa_tensor& t) {
        std::int64_t stride = 1;
        for (int i = t.rank; i-- > 0; stride *= t.shape[i]) t.stride[i] = stride;
    }

    void cache(std::int32_t type, std::initializer_list<std::int64_t> shape) {
        params.k = tensor(type, shape);
        params.v = tensor(type, shape);
        if (turns_ && params.k.rank == 4 && type != FA_Q8_0) {  // in turn, row by row
            const std::int64_t row = params.k.shape[2] * params.k.shape[3];
            const std::int64_t bytes = type == FA_F32 ? 4 : type == FA_E4M3 ? 1 : 2;
            for (const int i : {0, 1}) params.k.stride[i] *= 2;
            params.v = params.k;
            params.v.data = static_cast<std::byte*>(params.k.data) + row * bytes;
        }
    }

    const std::int32_t* array(std::initializer_list<std::int32_t> list) {
        std::int32_t* made = numbers + filled_;
        std::copy(list.begin(), list.end(), made);
        filled_ += list.size() + 1;  // behind which is a -1
        return made;
    }

    void finish(Random& random) {
        fa_fwd_params& p = params;
        const std::int64_t d = p.q.shape[p.q.rank - 1];
        if (random.chance(20)) p.sinks = tensor(FA_F32, {4});
        if (random.chance(20) && p.k.type != FA_E4M3 && p.q.type != FA_E4M3)
            p.q_v = p.q.rank == 3 ? tensor(p.q.type, {6, 4, d}) : tensor(p.q.type, {2, 3, 4, d});
        if (p.k.type == FA_E4M3 && random.chance(50)) p.k_descale = tensor(FA_F32, {2, 2});
        if (p.q.type == FA_E4M3 && random.chance(50)) p.q_descale = tensor(FA_F32, {2, 2});
        p.flags = static_cast<std::uint32_t>(random.below(4));
        if (random.chance(30)) p.window_left = 5;
        if (random.chance(30)) p.attention_chunk = 7;
        if (random.chance(30)) p.num_splits = 3;
        if (random.chance(20)) p.softcap = 2.0f;
    }

    std::size_t used_ = 0, filled_ = 0;
    bool turns_ = false;
};

// ---- changes
// -------------------------------------------------------------------------------------

void* hostile_pointer(Random& random, const fa_fwd_params& p) {
    switch (random.below(5)) {
        case 0: return nullptr;
        case 1: return arena + random.below(arena_bytes);
        case 2: return arena + random.below(arena_bytes / 64) * 64;
        case 3: return std::bit_cast<void*>(~std::uintptr_t{0} - random.below(64));
        default: return (p.*tensors[random.below(std::size(tensors))]).data;
    }
}

void change(fa_tensor& t, Random& random, const fa_fwd_params& p) {
    const std::size_t i = random.below(FA_MAX_RANK);
    std::int64_t& number = random.chance(50) ? t.shape[i] : t.stride[i];
    switch (random.below(8)) {
        case 0: t.type = static_cast<std::int32_t>(hostile_number(random)); break;
        case 1: t.type = static_cast<std::int32_t>(random.below(5)); break;
        case 2: t.rank = static_cast<std::int32_t>(hostile_number(random)); break;
        case 3: t.data = hostile_pointer(random, p); break;
        case 4: t = p.*tensors[random.below(std::size(tensors))]; break;
        case 5: number = static_cast<std::int64_t>(random.below(40)); break;
        case 6: number = number / 2 + static_cast<std::int64_t>(random.below(3)); break;
        default: number = hostile_number(random);
    }
}

// The same new size wherever there is this one, so that tensors still go together.
void resize(fa_fwd_params& p, Random& random) {
    const std::int64_t sizes[] = {0, 1, 2, 3, 4, 6, 16, 20, 32};
    const std::int64_t old = random.of(std::span<const std::int64_t>(sizes));
    const std::int64_t chosen = random.of(std::span<const std::int64_t>(sizes));
    for (const auto tensor : tensors)
        for (std::int64_t& n : (p.*tensor).shape)
            if (n == old) n = chosen;
}

const std::int32_t* hostile_array(Random& random) {
    const std::uintptr_t last = ~std::uintptr_t{0};
    switch (random.below(4)) {
        case 0: return nullptr;
        case 1: return std::bit_cast<const std::int32_t*>(last - 3);
        case 2:
            return std::bit_cast<const std::int32_t*>(std::bit_cast<std::uintptr_t>(+numbers) + 2);
        default: return numbers + random.below(40);
    }
}

void change(fa_fwd_params& p, Random& random) {
    switch (random.below(10)) {
        case 0:
        case 1:
        case 2:
        case 3: change(p.*tensors[random.below(std::size(tensors))], random, p); break;
        case 4: resize(p, random); break;
        case 5:
            p.*shorts[random.below(std::size(shorts))] =
                static_cast<std::int32_t>(hostile_number(random));
            break;
        case 6: p.*longs[random.below(std::size(longs))] = hostile_number(random); break;
        case 7: p.*arrays[random.below(std::size(arrays))] = hostile_array(random); break;
        case 8:
            numbers[random.below(40)] = static_cast<std::int32_t>(hostile_number(random));
            break;
        default:
            if (random.chance(50)) p.flags ^= 1u << random.below(32);
            float& number = random.chance(50) ? p.softcap : p.softmax_scale;
            number = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    }
}

// ---- what may be read
// ----------------------------------------------------------------------------

// Whether all elements lie in the arena.
bool in_arena(const fa_tensor& t) {
    if (!t.data || t.rank < 1 || t.rank > FA_MAX_RANK) return true;  // nothing is read
    __int128 first = static_cast<std::byte*>(t.data) - arena, last = 0;
    for (int i = 0; i < t.rank; ++i) {
        if (t.shape[i] <= 0) return true;
        if (t.shape[i] > 1) last += static_cast<__int128>(t.shape[i] - 1) * t.stride[i];
        if (last < 0 || last > arena_bytes) return false;
    }
    return first >= 0 && first + (last + 1) * 4 <= static_cast<__int128>(arena_bytes);
}

bool all_in_arena(const fa_fwd_params& p) {
    return std::ranges::all_of(tensors, [&](auto tensor) { return in_arena(p.*tensor); });
}

// Whether arrays that would be read lie in `numbers`, or are refused by their address.
bool arrays_readable(const fa_fwd_params& p) {
    const bool forward_together = p.cu_seqlens_q || p.batch != 0;
    __int128 b = forward_together ? p.batch : p.q.shape[0];
    b = std::max<__int128>({b, p.k_new.shape[0] < 1000 ? p.k_new.shape[0] : 0, 0});
    for (const auto member : arrays) {
        const auto at = std::bit_cast<std::uintptr_t>(p.*member);
        if (at % 4 != 0 || at == 0 || at == ~std::uintptr_t{0} - 3) continue;
        __int128 n = b + 1;
        if (member == &fa_fwd_params::page_table) {
            const __int128 columns = p.page_table_columns;
            n = b * (p.page_table_stride ? p.page_table_stride : columns) + columns;
            if (p.page_table_stride < 0 || columns < 0) continue;
        }
        if (p.*member - numbers + n > most_numbers) return false;
    }
    return true;
}

bool is_cheap(const fa_fwd_params& p) {
    const auto& k = p.k.shape;
    return k[0] < 5000 && k[1] < 5000 && p.max_seqlen_q < 5000 && p.max_seqlen_k < 5000 &&
           p.page_table_columns < 5000;
}

// ---- calls
// ---------------------------------------------------------------------------------------

struct Counts {
    long long refused = 0, accepted = 0, ran = 0;
} counts;
long long current = 0;

[[noreturn]] void fail(const char* what) {
    std::printf("struct %lld: %s: \"%s\"\n", current, what, fa_last_error());
    std::exit(1);
}

// A refusal names a field.
bool refused(fa_status status) {
    if (status == FA_OK) return false;
    if (status != FA_INVALID && status != FA_UNSUPPORTED) fail("another status than a refusal's");
    const std::string_view text = fa_last_error();
    if (std::ranges::none_of(names, [&](auto name) { return text.find(name) != text.npos; }))
        fail("a refusal without a name");
    return true;
}

// Nothing has changed but in those tensors.
void check_unchanged(std::initializer_list<const fa_tensor*> written) {
    for (const fa_tensor* t : written) {
        if (!t->data || t->rank < 1) continue;
        if (std::any_of(t->shape, t->shape + t->rank, [](auto n) { return n < 1; })) continue;
        std::int64_t last = 0;
        for (int i = 0; i < t->rank; ++i)
            if (t->shape[i] > 1) last += (t->shape[i] - 1) * t->stride[i];
        const auto at = static_cast<std::byte*>(t->data) - arena;
        if (at < 0 || at >= static_cast<std::ptrdiff_t>(arena_bytes)) continue;
        std::size_t bytes = static_cast<std::size_t>(last + 1);
        bytes = t->type == FA_Q8_0 ? (bytes - 1) / 32 * 34 + 34
                                   : bytes * (t->type == FA_F32    ? 4
                                              : t->type == FA_E4M3 ? 1
                                                                   : 2);
        std::memcpy(arena + at, untouched + at, bytes);
    }
    if (std::memcmp(arena, untouched, arena_bytes) != 0) fail("memory that is not its own changed");
}

void call_forward(fa_context* context, fa_fwd_params& p) {
    std::uint64_t bytes = 0;
    const bool sized = !refused(fa_fwd_workspace(context, &p, &bytes));
    check_unchanged({});
    if (!arrays_readable(p)) return;
    if (p.k_new.data && all_in_arena(p) && is_cheap(p)) {
        if (!refused(fa_kv_append(context, &p, nullptr))) check_unchanged({&p.k, &p.v});
        check_unchanged({});
    }
    char reason[64];
    const bool supported = !refused(fa_supported(context, &p, reason, sizeof reason));
    if (supported && !sized) fail("a call is supported, but its workspace has no size");
    if (!supported) {
        ++counts.refused;
        p.workspace = arena + arena_bytes;
        p.workspace_bytes = ~std::uint64_t{0} >> 1;
        if (!refused(fa_fwd(context, &p, nullptr))) fail("a call runs that is not supported");
        check_unchanged({});
        return;
    }
    ++counts.accepted;
    if (!all_in_arena(p) || !is_cheap(p) || bytes > 1 << 26) return;
    ++counts.ran;
    // Of exactly that size, so that a sanitizer sees what lies behind.
    const auto memory = std::make_unique_for_overwrite<std::byte[]>(bytes);
    p.workspace = memory.get();
    p.workspace_bytes = bytes;
    if (fa_fwd(context, &p, nullptr) != FA_OK) fail("a call that is supported does not run");
    if (p.k_new.data)
        check_unchanged({&p.out, &p.lse, &p.k, &p.v});
    else
        check_unchanged({&p.out, &p.lse});
}

void call_combine(fa_context* context, Random& random) {
    Base base(random);
    fa_combine_params p{};
    p.struct_size = random.chance(95) ? sizeof p : static_cast<std::uint32_t>(random.bits());
    base.params = fa_fwd_defaults();
    fa_fwd_params& pool = base.params;  // changes take tensors from a struct of the other kind
    pool.q = p.out_partial = base.tensor(FA_F32, {3, 2, 3, 4, 16});
    pool.k = p.lse_partial = base.tensor(FA_F32, {3, 2, 3, 4});
    pool.v = p.out = base.tensor(FA_F16, {2, 3, 4, 16});
    pool.out = p.lse = base.tensor(FA_F32, {2, 3, 4});
    fa_tensor* const all[] = {&p.out_partial, &p.lse_partial, &p.out, &p.lse};
    for (std::size_t n = random.below(4); n-- > 0;) change(*all[random.below(4)], random, pool);
    if (!std::ranges::all_of(all, [](const fa_tensor* t) { return in_arena(*t); })) return;
    if (refused(fa_combine(context, &p, nullptr))) {
        ++counts.refused;
        check_unchanged({});
    } else {
        ++counts.ran;
        check_unchanged({&p.out, &p.lse});
    }
}

void call(fa_context* context, Random& random) {
    if (random.chance(10)) return call_combine(context, random);
    Base base(random);
    fa_fwd_params& p = base.params;
    if (random.chance(15)) {
        for (std::size_t i = 0; i + 8 <= sizeof p; i += 8) {
            const std::uint64_t bits = random.chance(70) ? random.bits() : random.below(4);
            std::memcpy(reinterpret_cast<std::byte*>(&p) + i, &bits, 8);
        }
        if (random.chance(70)) p.flags = 0;
        // Where a reader of random addresses would be right to crash.
        for (const auto member : arrays) p.*member = hostile_array(random);
        p.struct_size = sizeof p;
    } else {
        for (std::size_t n = random.below(6); n-- > 0;) change(p, random);
    }
    if (random.chance(1)) p.struct_size = static_cast<std::uint32_t>(random.below(sizeof p));
    call_forward(context, p);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    Random content(1);
    for (std::byte& byte : untouched) byte = static_cast<std::byte>(content.bits());
    std::memcpy(arena, untouched, arena_bytes);
    fa_context* context = nullptr;
    if (fa_context_create("cpu:1", &context) != FA_OK) fail("there is no context");
    const long long first = std::atoll(argv[1]), count = std::atoll(argv[2]);
    for (current = first; current < first + count; ++current) {
        if (current % 1000 == 0) std::fprintf(stderr, "struct %lld\n", current);
        Random random(static_cast<std::uint64_t>(current));
        call(context, random);
    }
    fa_context_destroy(context);
    std::printf("%lld refused, %lld accepted, %lld ran\n", counts.refused, counts.accepted,
                counts.ran);
    return 0;
}
