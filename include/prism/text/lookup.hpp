// The tables behind a tokenizer: a hash map for small keys, a prefix tree, and the two-way list of tokens.
//
//     Vocabulary vocab;   vocab.insert("the", 262);   vocab.find("the");   vocab.token(262);
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::detail {

/// A hash map from 64-bit keys, by open addressing: one cache line per look-up, which is what merging costs.
template <class Value>
class FlatMap {
public:
    /// The value of a key, made if it is not there. No key may be 2^64 - 1.
    Value& operator[](std::uint64_t key) {
        if (2 * (size_ + 1) > slots_.size()) grow(std::max<std::size_t>(16, 2 * slots_.size()));
        Slot& slot = slots_[place(key)];
        if (slot.key == vacant) slot.key = key, ++size_;
        return slot.value;
    }
    const Value* find(std::uint64_t key) const {
        if (slots_.empty()) return nullptr;
        const Slot& slot = slots_[place(key)];
        return slot.key == vacant ? nullptr : &slot.value;
    }
    std::size_t size() const { return size_; }

private:
    static constexpr std::uint64_t vacant = ~std::uint64_t{0};
    struct Slot {
        std::uint64_t key = vacant;
        Value         value{};
    };

    std::size_t place(std::uint64_t key) const {
        std::uint64_t hash = key * 0x9e3779b97f4a7c15U;
        hash ^= hash >> 32;
        const std::size_t mask = slots_.size() - 1;
        std::size_t       at = hash & mask;
        while (slots_[at].key != key && slots_[at].key != vacant) at = (at + 1) & mask;
        return at;
    }
    void grow(std::size_t slots) {
        const auto old = std::exchange(slots_, std::vector<Slot>(slots));
        for (const Slot& slot : old)
            if (slot.key != vacant) slots_[place(slot.key)] = slot;
    }

    std::vector<Slot> slots_;  // a power of two of them, at most half in use
    std::size_t       size_ = 0;
};

/// Strings with a number each, found as prefixes of a text.
class Trie {
public:
    struct Match {
        std::size_t   bytes = 0;
        std::uint32_t value = 0;
    };

    /// The first value given to a string stays.
    template <class = void>
    void insert(std::string_view text, std::uint32_t value) {
        if (text.empty()) return;
        first_[static_cast<unsigned char>(text[0])] = true;
        std::uint32_t node = 0;
        for (const char c : text) {
            std::uint32_t& child = edges_[edge(node, c)];
            if (child == 0) {
                values_.push_back(none);
                child = static_cast<std::uint32_t>(values_.size() - 1);
            }
            node = child;
        }
        if (values_[node] == none) values_[node] = value;
    }
    /// The longest of the strings that stands at byte `at` of the text.
    template <class = void>
    std::optional<Match> longest(std::string_view text, std::size_t at) const {
        if (!first_[static_cast<unsigned char>(text[at])]) return std::nullopt;
        std::optional<Match> best;
        std::uint32_t        node = 0;
        for (std::size_t end = at; end < text.size(); ++end) {
            const std::uint32_t* child = edges_.find(edge(node, text[end]));
            if (!child) break;
            node = *child;
            if (values_[node] != none) best = Match{end + 1 - at, values_[node]};
        }
        return best;
    }
    bool empty() const { return values_.size() == 1; }

private:
    static constexpr std::uint32_t none = ~std::uint32_t{0};
    static std::uint64_t           edge(std::uint32_t node, char c) {
                  return std::uint64_t{node} << 8 | static_cast<unsigned char>(c);
    }

    FlatMap<std::uint32_t>     edges_;  // (node, byte) -> node
    std::vector<std::uint32_t> values_{none};
    std::array<bool, 256>      first_{};  // bytes that some string begins with
};

/// Token texts by id and ids by text. Ids may have gaps; an empty text is a gap.
class Vocabulary {
public:
    static constexpr std::int32_t max_id = (1 << 24) - 1;

    /// False, and nothing changed, when the id or the text is taken already or the id lies in no sensible range.
    template <class = void>
    bool insert(std::string token, std::int32_t id) {
        if (id < 0 || id > max_id || token.empty() || find(token)) return false;
        const auto at = static_cast<std::size_t>(id);
        if (at >= tokens_.size()) tokens_.resize(at + 1);
        if (!tokens_[at].empty()) return false;
        tokens_[at] = std::move(token);
        if (2 * (count_ + 1) > slots_.size()) {
            slots_.assign(std::max<std::size_t>(64, 2 * slots_.size()), 0);
            for (std::size_t i = 0; i < tokens_.size(); ++i)
                if (i != at && !tokens_[i].empty()) enter(i);
        }
        enter(at);
        ++count_;
        return true;
    }
    std::optional<std::int32_t> find(std::string_view token) const {
        if (token.empty() || slots_.empty()) return std::nullopt;
        const std::uint32_t slot = slots_[place(token)];
        if (slot == 0) return std::nullopt;
        return static_cast<std::int32_t>(slot - 1);
    }
    /// Empty for an id that no token has.
    std::string_view token(std::int32_t id) const {
        return id >= 0 && static_cast<std::size_t>(id) < tokens_.size()
                   ? std::string_view(tokens_[static_cast<std::size_t>(id)])
                   : std::string_view{};
    }
    /// How many tokens there are, and one more than the highest id.
    std::size_t size() const { return count_; }
    std::size_t end_id() const { return tokens_.size(); }

private:
    std::size_t place(std::string_view token) const {
        const std::size_t mask = slots_.size() - 1;
        std::size_t       at = std::hash<std::string_view>{}(token)&mask;
        while (slots_[at] != 0 && tokens_[slots_[at] - 1] != token) at = (at + 1) & mask;
        return at;
    }
    void enter(std::size_t id) { slots_[place(tokens_[id])] = static_cast<std::uint32_t>(id + 1); }

    std::vector<std::string>   tokens_;
    std::vector<std::uint32_t> slots_;  // id + 1 or 0; a power of two of them, at most half in use
    std::size_t                count_ = 0;
};

}  // namespace prism::detail
