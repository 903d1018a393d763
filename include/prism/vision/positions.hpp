// Position tables for another grid than the file's: bicubic, as timm resamples at load time.
#pragma once

#include "prism/core/error.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace prism {

/// Whether a table of `rows` rows is a square grid after `n_prefix` rows for other tokens.
inline bool is_square_grid(std::size_t rows, std::size_t n_prefix) {
    const std::size_t grid_rows = rows > n_prefix ? rows - n_prefix : 0;
    const auto        n = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(grid_rows))));
    return n > 0 && n * n == grid_rows;
}

/// A table [n_prefix + n n, d] with its grid resampled to [n_prefix + m m, d]; prefix rows stay as they are. n follows
/// from the size of the table. Throws ShapeError when the grid rows are no square.
/// Source: timm, layers/pos_embed.py: torch's bicubic with antialiasing (a = -0.5, half-pixel centres, f32); without it (a = -0.75,
/// four taps, edges repeated) as vision_transformer.py resamples files of OpenAI's and open_clip's naming.
template <class = void>
std::vector<float> resample_positions(std::span<const float> table, std::size_t d, std::size_t n_prefix, std::size_t m, bool antialias = true) {
    const std::size_t rows = d ? table.size() / d : 0;
    if (!is_square_grid(rows, n_prefix))
        throw ShapeError{"resample_positions", "table", "a square grid after " + std::to_string(n_prefix) + " prefix rows",
                         std::to_string(rows) + " rows"};
    const auto n = static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(rows - n_prefix))));

    struct Taps { std::size_t lo; std::vector<float> weights; };
    const auto cubic = [a = antialias ? -0.5f : -0.75f](float t) {
        t = std::fabs(t);
        if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
        return t < 2 ? ((t - 5) * t + 8) * t * a - 4 * a : 0.0f;
    };
    const float       scale = static_cast<float>(n) / static_cast<float>(m), stretch = std::max(scale, 1.0f), support = 2 * stretch;
    std::vector<Taps> taps(m);
    for (std::size_t i = 0; !antialias && i < m; ++i) {
        const float at = scale * (static_cast<float>(i) + 0.5f) - 0.5f, left = std::floor(at);
        const auto  inside = [&](int tap) { return std::clamp(static_cast<long>(left) + tap, 0L, static_cast<long>(n) - 1); };
        taps[i].lo = static_cast<std::size_t>(inside(-1));
        taps[i].weights.resize(static_cast<std::size_t>(inside(2) - inside(-1) + 1));
        for (int tap = -1; tap <= 2; ++tap) taps[i].weights[static_cast<std::size_t>(inside(tap) - inside(-1))] += cubic(at - left - static_cast<float>(tap));
    }
    for (std::size_t i = 0; antialias && i < m; ++i) {
        const float centre = scale * (static_cast<float>(i) + 0.5f);
        const auto  lo = static_cast<std::size_t>(std::max(static_cast<long>(centre - support + 0.5f), 0L));
        const auto  hi = std::min(static_cast<std::size_t>(centre + support + 0.5f), n);
        float       sum = 0;
        taps[i].lo = lo;
        for (std::size_t j = lo; j < hi; ++j) {
            const float w = cubic((static_cast<float>(j) - centre + 0.5f) / stretch);
            taps[i].weights.push_back(w), sum += w;
        }
        for (float& w : taps[i].weights) w /= sum;
    }

    const float*       grid = table.data() + n_prefix * d;
    std::vector<float> wide(n * m * d);  // [n, m, d]: columns done
    for (std::size_t y = 0; y < n; ++y)
        for (std::size_t x = 0; x < m; ++x)
            for (std::size_t j = 0; j < taps[x].weights.size(); ++j)
                for (std::size_t c = 0; c < d; ++c)
                    wide[(y * m + x) * d + c] += taps[x].weights[j] * grid[(y * n + taps[x].lo + j) * d + c];
    std::vector<float> result((n_prefix + m * m) * d);
    std::copy_n(table.data(), n_prefix * d, result.data());
    for (std::size_t y = 0; y < m; ++y)
        for (std::size_t j = 0; j < taps[y].weights.size(); ++j)
            for (std::size_t k = 0; k < m * d; ++k)
                result[(n_prefix + y * m) * d + k] += taps[y].weights[j] * wide[(taps[y].lo + j) * m * d + k];
    return result;
}

}  // namespace prism
