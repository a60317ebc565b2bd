// What nodes of a cluster pass to each other: the blocks by their definition, columns in their
// places and nothing beside them, on any number of threads.

#include <cstring>

#include "arrays.h"
#include "check.h"
#include "dispatch.h"
#include "ops/q80.h"
#include "ops/slices.h"
#include "threads.h"

using namespace arrays;
using tensor_ops::KernelTable;
using tensor_ops::q80_bytes;
using tensor_ops::run_team;
using tensor_ops::Worker;

namespace {

constexpr std::size_t rows = 3, n = 640, offset = 96, width = 1024;

// Rows of blocks, each byte the same.
Array<std::byte> blocks(std::size_t values, int byte) {
    Array<std::byte> all(rows * values / 32 * q80_bytes);
    std::memset(all.data(), byte, rows * values / 32 * q80_bytes);
    return all;
}

float value(const KernelTable& table, const std::byte* block, std::size_t i) {
    float scale;
    table.to_float(tensor_ops::DType::f16, block, &scale, 1);
    return scale * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

}  // namespace

KERNEL_TEST(q80_blocks_hold_what_they_should) {
    Floats x = normal(n, 1);
    for (std::size_t i = 32; i < 64; ++i) x[i] = 0.0f;  // a block without a scale
    Array<std::byte> held(n / 32 * q80_bytes);
    Floats back(n), rounded(n);
    tensor_ops::quantize_q80(table, x.data(), held.data(), n);
    tensor_ops::dequantize_q80(table, held.data(), back.data(), n);
    tensor_ops::round_q80(table, x.data(), rounded.data(), n);
    for (std::size_t b = 0; b < n / 32; ++b) {
        float largest = 0.0f;
        for (std::size_t i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[b * 32 + i]));
        for (std::size_t i = 0; i < 32; ++i) {
            const std::size_t at = b * 32 + i;
            check::that(back[at] == value(table, held.data() + b * q80_bytes, i), "decoded");
            check::that(back[at] == rounded[at], "rounded as the blocks hold it");
            // Half a step, and the scale's own rounding.
            check::that(std::fabs(back[at] - x[at]) <= largest * (0.5f / 127 + 0.0005f), "near");
        }
    }
}

TEST(columns_are_put_where_they_belong_and_nothing_beside_them) {
    for (const int threads : {1, 2, 3}) {
        const Threads use(threads);
        const KernelTable& table = tensor_ops::kernels();
        const Floats x = normal(rows * n, 2);
        Array<std::byte> to = blocks(width, 0x55);
        run_team([&](const Worker& worker) {
            tensor_ops::put_columns(worker, table, x.data(), {to.data(), width, true}, rows, n,
                                    offset);
        });
        Array<std::byte> expected(n / 32 * q80_bytes);
        for (std::size_t r = 0; r < rows; ++r) {
            tensor_ops::quantize_q80(table, x.data() + r * n, expected.data(), n);
            const std::byte* row = to.data() + r * width / 32 * q80_bytes;
            const std::size_t first = offset / 32 * q80_bytes, count = n / 32 * q80_bytes;
            check::that(!std::memcmp(row + first, expected.data(), count), "the columns");
            for (std::size_t i = 0; i < width / 32 * q80_bytes; ++i)
                if (i < first || i >= first + count)
                    check::that(row[i] == std::byte{0x55}, "what stands beside them");
        }
        Floats back(rows * n), rounded(rows * n);
        run_team([&](const Worker& worker) {
            tensor_ops::take_columns(worker, table, {to.data(), width, true}, back.data(), rows, n,
                                     offset);
            tensor_ops::round_q8(worker, table, x.data(), rounded.data(), rows, n);
        });
        check::that(!std::memcmp(back.data(), rounded.data(), rows * n * sizeof(float)), "taken");
    }
}

TEST(parts_are_added_in_their_order_on_any_number_of_threads) {
    constexpr std::size_t n_parts = 3;
    const KernelTable& table = tensor_ops::kernels();
    const Floats x = normal(rows * n, 3), parts = normal(rows * n * n_parts, 4);
    for (const int threads : {1, 2, 3})
        for (const bool quantized : {false, true}) {
            const Threads use(threads);
            Array<std::byte> held = blocks(n * n_parts, 0);
            Floats given(rows * n * n_parts), sum(rows * n);
            tensor_ops::quantize_q80(table, parts.data(), held.data(), rows * n * n_parts);
            if (quantized)
                tensor_ops::dequantize_q80(table, held.data(), given.data(), rows * n * n_parts);
            else
                std::memcpy(given.data(), parts.data(), rows * n * n_parts * sizeof(float));
            void* data = quantized ? static_cast<void*>(held.data()) : given.data();
            std::memcpy(sum.data(), x.data(), rows * n * sizeof(float));
            run_team([&](const Worker& worker) {
                tensor_ops::merge_add(worker, table, sum.data(), {data, n * n_parts, quantized},
                                      sum.data(), rows, n, n_parts);
            });
            for (std::size_t r = 0; r < rows; ++r)
                for (std::size_t i = 0; i < n; ++i) {
                    float expected = x[r * n + i];
                    for (std::size_t p = 0; p < n_parts; ++p)
                        expected += given[(r * n_parts + p) * n + i];
                    check::that(sum[r * n + i] == expected, "the sum");
                }
        }
}
