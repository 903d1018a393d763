// Scores of single answers: exact match, agreement with ten people, boxes, and the likeliest of a few tokens.
//
//     exact_match(" Red", "red");                         // true
//     intersection_over_union(*parse_box("[0, 0, 1, 0.5]"), truth);
#pragma once

#include "prism/text/unicode.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace prism::shapes {

namespace detail {

/// Lower case, no white space at the ends, no full stop after them.
inline std::string plain_answer(std::string_view text) {
    std::string answer{unicode::strip(text)};
    if (answer.ends_with('.')) answer.pop_back();
    return unicode::lower(answer);
}

}  // namespace detail

inline bool exact_match(std::string_view answer, std::string_view truth) { return detail::plain_answer(answer) == detail::plain_answer(truth); }

/// VQA's accuracy: the mean, over the people left out one by one, of min(1, how many of the others agree / 3).
inline double soft_accuracy(std::string_view answer, std::span<const std::string> people) {
    const auto same = static_cast<double>(std::ranges::count_if(people, [&](const std::string& p) { return exact_match(answer, p); }));
    const auto n = static_cast<double>(people.size());
    if (people.empty()) return 0;
    return (same * std::min(1.0, (same - 1) / 3) + (n - same) * std::min(1.0, same / 3)) / n;
}

using UnitBox = std::array<double, 4>;  // x1, y1, x2, y2, from 0 to 1

/// The box that an answer like "[0.12, 0.34, 0.56, 0.78]" names: four decimals in brackets and nothing else, each corner
/// inside the picture and the second beyond the first. Nothing for any other answer.
inline std::optional<UnitBox> parse_box(std::string_view text) {
    text = unicode::strip(text);
    if (!text.starts_with('[') || !text.ends_with(']')) return std::nullopt;
    text = text.substr(1, text.size() - 2);
    UnitBox box{};
    for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t comma = text.find(',');
        if ((comma == std::string_view::npos) != (i == 3)) return std::nullopt;
        const std::string_view number = unicode::strip(text.substr(0, comma));
        double                 scale = 0;  // of the next digit; 0 before the point
        bool                   digits = false;
        for (const char c : number) {
            if (c == '.' && scale == 0) scale = 0.1;
            else if (c < '0' || c > '9' || number.size() > 16) return std::nullopt;
            else if (digits = true; scale == 0) box[i] = box[i] * 10 + (c - '0');
            else box[i] += scale * (c - '0'), scale /= 10;
        }
        if (!digits || box[i] > 1) return std::nullopt;
        text.remove_prefix(std::min(comma + 1, text.size()));
    }
    if (box[0] >= box[2] || box[1] >= box[3]) return std::nullopt;
    return box;
}

inline double intersection_over_union(const UnitBox& a, const UnitBox& b) {
    const auto   area = [](const UnitBox& x) { return (x[2] - x[0]) * (x[3] - x[1]); };
    const double w = std::min(a[2], b[2]) - std::max(a[0], b[0]), h = std::min(a[3], b[3]) - std::max(a[1], b[1]);
    if (w <= 0 || h <= 0) return 0;
    return w * h / (area(a) + area(b) - w * h);
}

/// Probabilities of a few tokens as the next one, among themselves, from the scores [vocab] of all. Stable: exp never
/// overflows, and a token that is far behind all others still gets its share of the few.
inline std::vector<double> choice_probabilities(std::span<const float> logits, std::span<const std::int32_t> choices) {
    std::vector<double> p;
    float               most = -INFINITY;
    for (const std::int32_t id : choices) most = std::max(most, logits[static_cast<std::size_t>(id)]);
    double sum = 0;
    for (const std::int32_t id : choices) sum += p.emplace_back(std::exp(static_cast<double>(logits[static_cast<std::size_t>(id)]) - static_cast<double>(most)));
    for (double& x : p) x /= sum;
    return p;
}

/// The likeliest choice; of equals the first.
inline std::size_t likeliest(std::span<const float> logits, std::span<const std::int32_t> choices) {
    const auto p = choice_probabilities(logits, choices);
    return static_cast<std::size_t>(std::ranges::max_element(p) - p.begin());
}

}  // namespace prism::shapes
