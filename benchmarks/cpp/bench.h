// Registers operations as benchmarks, once for each ISA that runs here, on one thread and on all:
// "silu/128x4096/avx512/threads:2".  Each reports how much of the machine's limit it reaches.
#pragma once

#include <cstddef>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels.h"
#include "threads/team.h"

namespace bench {

enum class Limit { none, read, copy, multiply_add, dot };

// What one call needs at least: `amount` bytes or operations of the limit that is scarcest.
struct Work {
    Limit limit;
    double amount;
    double operations;  // multiplications and additions, for the rate that is shown
};

// One worker's share of the operation; the iteration's number picks one of several matrices.
using Operation = std::function<void(const tensor_ops::Worker&, std::size_t iteration)>;
// Called with the ISA in use before the clock starts; what it captures lives as long as its result.
using Prepare = std::function<Operation(const tensor_ops::KernelTable&)>;

void add(const std::string& name, const Work& work, const Prepare& prepare);

// The best of some probes of a limit, in bytes or operations a second; probed once.
double limit_rate(Limit limit, const std::string& isa, int threads);

// {1, 4096} -> "/1x4096".
std::string dimensions(std::initializer_list<std::size_t> sizes);

// Normally distributed, the same at each call.
std::vector<float> normal(std::size_t n, float deviation = 1.0f);

// Objects of that many bytes to cycle through so that no cache holds them.
std::size_t cycles(std::size_t bytes);

void add_limits();
void add_elementwise();
void add_products();
void add_attention();

}  // namespace bench
