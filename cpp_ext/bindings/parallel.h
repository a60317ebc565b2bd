// Runs an operation's work on the team, with as many threads as pay for themselves.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>

#include "bindings/gil.h"
#include "threads/team.h"

namespace tensor_ops::bindings {

// Work is counted in elements of an activation, about a nanosecond each.  From twice this on, a
// second thread pays for its waking (about 5 microseconds when it sleeps).
inline constexpr std::size_t work_per_thread = 8192;

// f must not touch Python.  For little work the GIL is kept: releasing it and taking it again costs
// more than a second Python thread could gain.
template <class F>
void run_parallel(std::size_t work, F&& f) {
    std::optional<WithoutGil> released;
    if (work >= work_per_thread) released.emplace();
    const std::size_t threads = std::clamp<std::size_t>(work / work_per_thread, 1, 1024);
    run_team(f, static_cast<int>(threads));
}

}  // namespace tensor_ops::bindings
