// The learning rate of Prismatic's runs. Source: transformers, optimization.py, get_cosine_schedule_with_warmup.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace prism {

/// The rate of step 0, 1, ... of `total`: linear to the peak over trunc(total warmup_ratio) steps, so that the first is 0; then
/// half a cosine to 0.
inline double warmup_cosine(double peak, double warmup_ratio, std::uint64_t step, std::uint64_t total) {
    const auto all = static_cast<double>(total), warmup = std::trunc(all * warmup_ratio), at = static_cast<double>(step);
    if (at < warmup) return peak * at / std::max(1.0, warmup);
    return peak * std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * (at - warmup) / std::max(1.0, all - warmup))));
}

}  // namespace prism
