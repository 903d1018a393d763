// NameMap: the names of a model turned into those of a file, by rules.
//
//     const auto rename = NameMap{}.prefix("llm_backbone.llm", "language_model").suffix("gamma", "scale_factor");
//     rename("llm_backbone.llm.norm.weight");   // "language_model.norm.weight"
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism {

/// Rules replace whole segments of a dotted path, never parts of one, and are applied in the order in which they were
/// added, each to what the one before it gave. Without rules every name stays. An empty `to` removes the segments.
class NameMap {
public:
    /// At the start; an empty `from` puts `to` before every name.
    NameMap& prefix(std::string from, std::string to) { return add(Place::prefix, std::move(from), std::move(to)); }
    /// At the end; an empty `from` puts `to` behind every name.
    NameMap& suffix(std::string from, std::string to) { return add(Place::suffix, std::move(from), std::move(to)); }
    /// Wherever the segments stand.
    NameMap& segment(std::string from, std::string to) { return add(Place::anywhere, std::move(from), std::move(to)); }

    std::string operator()(std::string name) const {
        for (const Rule& rule : rules_) name = rule(name);
        return name;
    }
    bool empty() const { return rules_.empty(); }

private:
    enum class Place { prefix, suffix, anywhere };

    // With a dot at both ends of the name and of `from`, segments are whole exactly where the texts match.
    struct Rule {
        Place       place;
        std::string from, to;

        std::string operator()(const std::string& name) const {
            std::string path = dotted(name);
            if (place == Place::prefix) {
                if (path.starts_with(from)) path.replace(0, from.size(), to);
            } else if (place == Place::suffix) {
                if (path.ends_with(from)) path.replace(path.size() - from.size(), from.size(), to);
            } else {
                for (std::size_t at = 0; (at = path.find(from, at)) != path.npos; at += to.size() - 1)
                    path.replace(at, from.size(), to);
            }
            return path.size() > 2 ? path.substr(1, path.size() - 2) : std::string{};
        }
    };
    static std::string dotted(const std::string& segments) { return segments.empty() ? "." : "." + segments + "."; }

    NameMap& add(Place place, std::string from, std::string to) {
        if (place != Place::anywhere || !from.empty()) rules_.push_back({place, dotted(from), dotted(to)});
        return *this;
    }

    std::vector<Rule> rules_;
};

/// The fewest insertions, deletions and substitutions of bytes that turn `a` into `b`; `limit` when it is that or more.
/// Source: R. Wagner, M. Fischer, The String-to-String Correction Problem, 1974.
inline std::size_t edit_distance(std::string_view a, std::string_view b,
                                 std::size_t limit = std::numeric_limits<std::size_t>::max()) {
    if ((a.size() > b.size() ? a.size() - b.size() : b.size() - a.size()) >= limit) return limit;
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = std::exchange(row[0], i + 1), least = row[0];
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t substituted = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
            least = std::min(least, row[j + 1]);
        }
        if (least >= limit) return limit;
    }
    return std::min(row.back(), limit);
}

/// The candidate that `name` is most likely a slip of, for hints in messages; none where all differ in more than a
/// third. Costs about the product of all lengths: ask for a few names, not for thousands.
template <class Names>
std::optional<std::string> nearest_name(std::string_view name, const Names& candidates) {
    std::size_t                least = name.size() / 3 + 1;
    std::optional<std::string> nearest;
    for (const auto& candidate : candidates) {
        const std::size_t distance = edit_distance(name, candidate, least);
        if (distance < least) least = distance, nearest = std::string(candidate);
    }
    return nearest;
}

}  // namespace prism
