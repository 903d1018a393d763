// Random numbers that need no history: the n-th number of (seed, scene, purpose) is a function of these four.
//
//     Random colors{seed, {Split::train, 17}, Purpose::layout};
//     const int n = colors.between(3, 6);
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox4x32 with 10 rounds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace prism::shapes {

/// Four words that look random, of a counter and a key.
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0], b = std::uint64_t{0xCD9E8D57} * c[2];
        c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<std::uint32_t>(b),
             static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<std::uint32_t>(a)};
        key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
    }
    return c;
}

/// Scenes of different splits are different scenes. `fresh` is what people draw for themselves, `corpus` is never drawn.
enum class Split : std::uint8_t { train, validation, test, compositional, clutter, fresh, corpus };

struct SceneId {
    Split         split = Split::train;
    std::uint64_t index = 0;  // below 2^56
    bool          operator==(const SceneId&) const = default;
};

/// What the numbers are for: more of one kind never shifts those of another.
enum class Purpose : std::uint8_t { layout, noise, caption, questions, corpus, dialogue, example };

class Random {
public:
    Random(std::uint64_t seed, SceneId scene, Purpose purpose)
        : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
          counter_{0, static_cast<std::uint32_t>(purpose), static_cast<std::uint32_t>(scene.index),
                   static_cast<std::uint32_t>(scene.index >> 32) ^ static_cast<std::uint32_t>(scene.split) << 24} {}

    std::uint32_t next() {
        if (used_ == 4) words_ = philox(counter_, key_), ++counter_[0], used_ = 0;
        return words_[used_++];
    }
    /// 0 ... n - 1, each as likely as the others (Lemire's multiplication, with rejection). n > 0.
    std::uint32_t below(std::uint32_t n) {
        std::uint64_t product = std::uint64_t{next()} * n;
        for (const std::uint32_t least = (0U - n) % n; static_cast<std::uint32_t>(product) < least;) product = std::uint64_t{next()} * n;
        return static_cast<std::uint32_t>(product >> 32);
    }
    /// low ... high, both included.
    int  between(int low, int high) { return low + static_cast<int>(below(static_cast<std::uint32_t>(high - low + 1))); }
    bool percent(std::uint32_t p) { return below(100) < p; }

    template <class List>
    const auto& pick(const List& list) { return list[below(static_cast<std::uint32_t>(std::size(list)))]; }
    /// An index, as likely as its weight.
    std::size_t weighted(std::span<const int> weights) {
        int sum = 0;
        for (const int w : weights) sum += w;
        int         left = between(0, sum - 1);
        std::size_t i = 0;
        while (left >= weights[i]) left -= weights[i++];
        return i;
    }
    template <class List>
    void shuffle(List& list) {
        for (std::size_t n = list.size(); n > 1; --n) std::swap(list[n - 1], list[below(static_cast<std::uint32_t>(n))]);
    }

private:
    std::array<std::uint32_t, 2> key_;
    std::array<std::uint32_t, 4> counter_, words_{};
    std::size_t                  used_ = 4;
};

}  // namespace prism::shapes
