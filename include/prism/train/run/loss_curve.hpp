// loss_curve: the loss of a run as a picture, with numbers on its axes.
//
//     prism::write_png("loss.png", prism::loss_curve(points));
#pragma once

#include "prism/core/error.hpp"
#include "prism/image/image.hpp"
#include "prism/image/write.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace prism {

struct LossPoint {
    double step, raw, smooth;
};

namespace detail {

/// Signs of 5 x 7 dots, a byte a row, its lowest five bits from left to right.
struct Sign {
    char                        name;
    std::array<std::uint8_t, 7> rows;
};
inline constexpr std::array signs{
    Sign{'0', {14, 17, 19, 21, 25, 17, 14}}, Sign{'1', {4, 12, 4, 4, 4, 4, 14}},      Sign{'2', {14, 17, 1, 2, 4, 8, 31}},    Sign{'3', {31, 2, 4, 2, 1, 17, 14}},
    Sign{'4', {2, 6, 10, 18, 31, 2, 2}},     Sign{'5', {31, 16, 30, 1, 1, 17, 14}},   Sign{'6', {6, 8, 16, 30, 17, 17, 14}},  Sign{'7', {31, 1, 2, 4, 8, 8, 8}},
    Sign{'8', {14, 17, 17, 14, 17, 17, 14}}, Sign{'9', {14, 17, 17, 15, 1, 2, 12}},   Sign{'.', {0, 0, 0, 0, 0, 12, 12}},     Sign{'-', {0, 0, 0, 31, 0, 0, 0}},
    Sign{'+', {0, 4, 4, 31, 4, 4, 0}},       Sign{'e', {0, 0, 14, 17, 31, 16, 14}},   Sign{'l', {12, 4, 4, 4, 4, 4, 14}},     Sign{'o', {0, 0, 14, 17, 17, 17, 14}},
    Sign{'s', {0, 0, 14, 16, 14, 1, 30}},    Sign{'t', {8, 8, 28, 8, 8, 9, 6}},       Sign{'p', {0, 0, 30, 17, 30, 16, 16}},
};

/// Draws on a picture; what lies outside of it is left out.
struct Canvas2d {
    Image& image;

    void dot(std::ptrdiff_t x, std::ptrdiff_t y, Rgb colour) {
        if (x < 0 || y < 0 || x >= static_cast<std::ptrdiff_t>(image.width()) || y >= static_cast<std::ptrdiff_t>(image.height())) return;
        std::copy(colour.begin(), colour.end(), image.row(static_cast<std::size_t>(y)) + 3 * x);
    }
    void vertical(std::ptrdiff_t x, std::ptrdiff_t y0, std::ptrdiff_t y1, Rgb colour) {
        for (std::ptrdiff_t y = std::min(y0, y1); y <= std::max(y0, y1); ++y) dot(x, y, colour);
    }
    void horizontal(std::ptrdiff_t x0, std::ptrdiff_t x1, std::ptrdiff_t y, Rgb colour) {
        for (std::ptrdiff_t x = x0; x <= x1; ++x) dot(x, y, colour);
    }
    void text(std::ptrdiff_t x, std::ptrdiff_t y, std::string_view words, Rgb colour) {
        for (const char c : words) {
            if (const auto sign = std::ranges::find(signs, c, &Sign::name); sign != signs.end())
                for (std::ptrdiff_t dy = 0; dy < 7; ++dy)
                    for (std::ptrdiff_t dx = 0; dx < 5; ++dx)
                        if (sign->rows[static_cast<std::size_t>(dy)] >> (4 - dx) & 1) dot(x + dx, y + dy, colour);
            x += 6;
        }
    }
};

/// The step, 1, 2 or 5 times a power of ten, that cuts a range into at most `n` parts.
inline double nice_step(double range, int n) {
    const double power = std::pow(10.0, std::floor(std::log10(range / n)));
    for (const double factor : {1.0, 2.0, 5.0, 10.0})
        if (range / (factor * power) <= n) return factor * power;
    return 10 * power;
}

}  // namespace detail

/// A picture [400, 640] of finite losses over steps: each in grey, their moving mean in blue. Throws ConfigError where
/// there is none.
inline Image loss_curve(std::span<const LossPoint> points) {
    double x0 = std::numeric_limits<double>::infinity(), x1 = -x0, y0 = x0, y1 = -x0;
    for (const LossPoint& p : points) {
        if (!std::isfinite(p.raw) || !std::isfinite(p.smooth)) continue;
        x0 = std::min(x0, p.step), x1 = std::max(x1, p.step);
        y0 = std::min({y0, p.raw, p.smooth}), y1 = std::max({y1, p.raw, p.smooth});
    }
    if (x1 < x0) throw ConfigError{"points", std::to_string(points.size()), "at least one with a finite loss"};
    if (x1 == x0) x0 -= 1, x1 += 1;
    if (y1 - y0 < 1e-6) y0 -= 0.5, y1 += 0.5;
    const double margin = 0.04 * (y1 - y0);
    y0 -= margin, y1 += margin;

    Image image = Image::sized(400, 640);
    image.pixels.fill(255);
    detail::Canvas2d         canvas{image};
    constexpr std::ptrdiff_t left = 60, right = 625, top = 22, bottom = 365;
    constexpr Rgb            black{40, 40, 40}, faint{225, 225, 225}, grey{175, 180, 190}, blue{30, 90, 200};
    const auto               across = [&](double x) { return left + std::lround((x - x0) / (x1 - x0) * (right - left)); };
    const auto               up = [&](double y) { return bottom - std::lround((y - y0) / (y1 - y0) * (bottom - top)); };
    const auto               print = [](double value) {
        char text[32];
        std::snprintf(text, sizeof text, "%.6g", value);
        return std::string(text);
    };
    const auto ticks = [](double from, double to, int n, auto&& each) {
        const double step = detail::nice_step(to - from, n);
        for (double i = std::ceil(from / step); i * step <= to; ++i) each(i == 0 ? 0.0 : i * step);
    };
    ticks(y0, y1, 8, [&](double y) {
        const std::string label = print(y);
        canvas.horizontal(left, right, up(y), faint);
        canvas.text(left - 6 - 6 * static_cast<std::ptrdiff_t>(label.size()), up(y) - 3, label, black);
    });
    ticks(x0, x1, 8, [&](double x) {
        const std::string label = print(x);
        canvas.vertical(across(x), top, bottom, faint);
        canvas.text(across(x) - 3 * static_cast<std::ptrdiff_t>(label.size()), bottom + 6, label, black);
    });
    const auto curve = [&](auto value, Rgb colour) {
        bool           begun = false;
        std::ptrdiff_t px = 0, py = 0;
        for (const LossPoint& p : points) {
            if (!std::isfinite(p.raw) || !std::isfinite(p.smooth)) continue;
            const std::ptrdiff_t x = across(p.step), y = up(value(p));
            for (std::ptrdiff_t c = begun ? px : x; c <= x; ++c) {  // a column at a time, from the height reached to the next
                const auto at = [&](std::ptrdiff_t column) { return !begun || x == px ? y : py + (y - py) * (column - px) / (x - px); };
                canvas.vertical(c, begun && x == px ? py : at(c), at(std::min(c + 1, x)), colour);
            }
            px = x, py = y, begun = true;
        }
    };
    curve([](const LossPoint& p) { return p.raw; }, grey);
    curve([](const LossPoint& p) { return p.smooth; }, blue);
    canvas.horizontal(left, right, bottom, black), canvas.vertical(left, top, bottom, black);
    canvas.text(left - 24, 8, "loss", black), canvas.text(right - 24, bottom + 20, "step", black);
    return image;
}

}  // namespace prism
