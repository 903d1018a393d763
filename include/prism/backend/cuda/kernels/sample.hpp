// Kernels that choose the next token on the device: the likeliest, or one drawn as Sampler (generate/sampling.hpp) draws.
#pragma once

#include "prism/backend/cuda/block.hpp"

namespace prism::cuda {

/// A score and where it was; the higher one wins, of equal ones the first, and NaN over all.
struct Candidate {
    float        score;
    std::int32_t index;
};

/// *to += value for whichever threads want it, in any order the same. Returns what was there.
PRISM_DEVICE inline std::uint32_t add_shared(std::uint32_t* to, std::uint32_t value) {
#if defined(__CUDA_ARCH__)
    return atomicAdd(to, value);
#else
    const std::uint32_t before = *to;
    *to += value;
    return before;
#endif
}

/// A sum of 64 bits that many threads add to. Shared memory adds 32 of them at a time; 64 would be tried until nobody came
/// between. Who makes the lower half overflow carries the one: exactly once, whoever comes between the halves.
struct SharedSum {
    std::uint32_t low, high;

    PRISM_DEVICE void add(std::uint64_t value) {
        const auto          of_low = static_cast<std::uint32_t>(value);
        const std::uint32_t carry = add_shared(&low, of_low) > ~of_low ? 1 : 0, of_high = static_cast<std::uint32_t>(value >> 32) + carry;
        if (of_high) add_shared(&high, of_high);
    }
    PRISM_DEVICE std::uint64_t value() const { return std::uint64_t{high} << 32 | low; }
};

/// *token = first_id + the index of the largest score [n]; of equal ones the lowest. -1 where one is not finite. One block.
struct TakeLikeliest {
    static constexpr int         max_threads = 1024;
    static constexpr std::size_t shared_bytes = warp_size * sizeof(Candidate);
    const float*                 scores;
    std::int32_t                 n, first_id;
    std::int32_t*                token;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        Reg<Block, Candidate> best(b);
        b.each_alone([&](int t) { best[t] = best_of(scores, n, t, b.n_threads()); });
        block_join<Block, Candidate>(b, best, b.template shared<Candidate>(0), [](Candidate p, Candidate q) { return better(p, q); });
        b.each_alone([&](int t) {
            if (t == 0) *token = best[t].score != best[t].score ? -1 : first_id + best[t].index;
        });
    }

    /// Of every n_threads-th score from t on. Eight are on their way at a time: one block has nobody else to wait for.
    PRISM_DEVICE static Candidate best_of(const float* scores, std::int32_t n, int t, int n_threads) {
        constexpr int at_once = 8;
        Candidate     best{-INFINITY, n};
        for (std::int32_t first = t; first < n; first += at_once * n_threads) {
            float s[at_once];
            PRISM_UNROLL
            for (int e = 0; e < at_once; ++e) s[e] = first + e * n_threads < n ? scores[first + e * n_threads] : 0;
            PRISM_UNROLL
            for (int e = 0; e < at_once; ++e)
                if (first + e * n_threads < n) best = better(best, {finite_or_nan(s[e]), first + e * n_threads});
        }
        return best;
    }
    PRISM_DEVICE static float     finite_or_nan(float s) { return s - s == 0 ? s : NAN; }
    PRISM_DEVICE static Candidate better(Candidate p, Candidate q) {
        if (p.score != p.score) return p;
        if (q.score != q.score) return q;
        if (p.score != q.score) return p.score > q.score ? p : q;
        return p.index < q.index ? p : q;
    }
};

/// A token drawn from softmax(scores / temperature), of the top_k most likely only (0: all), of those the most likely that
/// together reach top_p; `uniform` in [0, 1) decides. The same order as Sampler's: likelier ones first, of equal ones the
/// lower id. Instead of sorting, the score where the running sum crosses a bound is found digit by digit of its bits; sums
/// are of whole numbers, so no bit depends on who adds first. One block.
struct TakeDrawn {
    static constexpr int         max_threads = 1024;
    static constexpr std::size_t shared_bytes = 256 * (sizeof(SharedSum) + sizeof(std::uint32_t)) + 32 * sizeof(Candidate) + 64;
    const float*                 scores;
    std::int32_t                 n, first_id, top_k;
    float                        temperature, top_p;
    const double*                uniform;
    std::int32_t*                token;

    template <class Block>
    PRISM_DEVICE void operator()(Block& b) const {
        auto* const           mass_of = b.template shared<SharedSum>(0);
        auto* const           count_of = b.template shared<std::uint32_t>(256 * sizeof(SharedSum));
        auto* const           scratch = b.template shared<Candidate>(256 * 12);
        auto* const           found = b.template shared<Crossing>(256 * 12 + 32 * sizeof(Candidate));
        Reg<Block, Candidate> best(b);
        b.each_alone([&](int t) { best[t] = TakeLikeliest::best_of(scores, n, t, b.n_threads()); });
        block_join<Block, Candidate>(b, best, scratch, [](Candidate p, Candidate q) { return TakeLikeliest::better(p, q); });
        // From here on in units of 2^-40 of the likeliest token's probability.
        const auto weight = [&](int t, std::int32_t i) { return mass(scores[i], best[t].score); };
        // Entries in order of likelihood up to the one where `bound` is crossed: by count, or by mass.
        const auto cross = [&](bool by_mass, std::uint64_t bound, Crossing limit) {
            b.each([&](int t) {
                if (t == 0) *found = {0, 0, 0, 0, n};
            });
            for (int digit = 3; digit >= 0; --digit) {
                b.each([&](int t) {
                    for (int i = t; i < 256; i += b.n_threads()) mass_of[i] = {0, 0}, count_of[i] = 0;
                });
                b.each([&](int t) {
                    const std::uint32_t prefix = found->key;
                    for (std::int32_t i = t; i < n; i += b.n_threads()) {
                        const std::uint32_t key = order_key(scores[i]);
                        if (digit < 3 && key >> (8 * (digit + 1)) != prefix >> (8 * (digit + 1))) continue;
                        if (!limit.holds(key, i)) continue;
                        mass_of[key >> (8 * digit) & 255].add(weight(t, i));
                        add_shared(&count_of[key >> (8 * digit) & 255], std::uint32_t{1});
                    }
                });
                b.each([&](int t) {
                    if (t != 0) return;
                    Crossing c = *found;
                    int      bin = 255;
                    for (; bin > 0; --bin) {  // from the likeliest down
                        const std::uint64_t with = by_mass ? c.mass + mass_of[bin].value() : c.count + std::uint64_t{count_of[bin]};
                        if (count_of[bin] && with > bound) break;
                        c.mass += mass_of[bin].value(), c.count += count_of[bin];
                    }
                    c.key |= static_cast<std::uint32_t>(bin) << (8 * digit);
                    *found = c;
                });
            }
            // Among equal scores the lowest ids come first, each with the same weight: as many as stay within the bound, and the
            // one that crosses it, whose id is found digit by digit like its score.
            b.each([&](int t) {
                if (t != 0) return;
                const std::uint64_t each_has = mass(score_of(found->key), best[t].score), left = bound - (by_mass ? found->mass : found->count);
                found->before = by_mass ? (each_has ? left / each_has : 0) : left, found->last = 0;
            });
            for (int digit = 3; digit >= 0; --digit) {
                b.each([&](int t) {
                    for (int i = t; i < 256; i += b.n_threads()) count_of[i] = 0;
                });
                b.each([&](int t) {
                    const Crossing c = *found;
                    for (std::int32_t i = t; i < n; i += b.n_threads())
                        if (order_key(scores[i]) == c.key && limit.holds(c.key, i) && (digit == 3 || i >> (8 * (digit + 1)) == c.last >> (8 * (digit + 1))))
                            add_shared(&count_of[i >> (8 * digit) & 255], std::uint32_t{1});
                });
                b.each([&](int t) {
                    if (t != 0) return;
                    Crossing      c = *found;
                    std::uint64_t ahead = 0, seen = 0;
                    int           bin = 0;
                    for (int i = 0; i < 256 && seen <= c.before; ++i)
                        if (count_of[i]) bin = i, ahead = seen, seen += count_of[i];
                    const std::uint64_t taken = digit == 0 ? seen : ahead;  // the last digit says which one it is
                    c.before -= ahead, c.count += taken, c.mass += taken * mass(score_of(c.key), best[t].score);
                    c.last |= bin << (8 * digit);
                    *found = c;
                });
            }
            const Crossing result = *found;
            b.barrier();
            return result;
        };
        Crossing kept{0, 0, 0, 0, n};
        if (top_k > 0 && top_k < n) {
            kept = cross(false, static_cast<std::uint64_t>(top_k) - 1, kept);
        } else {
            b.each([&](int t) {
                if (t == 0) mass_of[0] = {0, 0};
            });
            b.each([&](int t) {
                std::uint64_t mine = 0;
                for (std::int32_t i = t; i < n; i += b.n_threads()) mine += weight(t, i);
                mass_of[0].add(mine);
            });
            kept.mass = mass_of[0].value(), kept.count = static_cast<std::uint64_t>(n);
            b.barrier();
        }
        if (top_p < 1) {
            const double wanted = static_cast<double>(top_p) * static_cast<double>(kept.mass);
            const auto   bound = static_cast<std::uint64_t>(::ceil(wanted));  // the first sum that is not below it
            kept = cross(true, bound ? bound - 1 : 0, kept);
        }
        const auto     at = static_cast<std::uint64_t>(*uniform * static_cast<double>(kept.mass));
        const auto     target = at < kept.mass || kept.mass == 0 ? at : kept.mass - 1;  // the product may have been rounded up
        const Crossing drawn = cross(true, target, kept);
        b.each_alone([&](int t) {
            if (t == 0) *token = best[t].score != best[t].score ? -1 : first_id + drawn.last;
        });
    }

private:
    /// The entries up to index `last` among those with this key, and all with larger keys.
    struct Crossing {
        std::uint64_t mass, count, before;  // before: while `last` is looked for, how many equal ones come first
        std::uint32_t key;
        std::int32_t  last;

        PRISM_DEVICE bool holds(std::uint32_t k, std::int32_t i) const { return k > key || (k == key && i <= last); }
    };
    /// Bits that are ordered as the numbers are.
    PRISM_DEVICE static std::uint32_t order_key(float s) {
        const std::uint32_t u = bits_of(s == 0 ? 0.0f : s);
        return u & 0x80000000U ? ~u : u | 0x80000000U;
    }
    PRISM_DEVICE static float score_of(std::uint32_t key) { return float_of(key & 0x80000000U ? key & 0x7fffffffU : ~key); }
    PRISM_DEVICE std::uint64_t mass(float s, float top) const {
        const double t = static_cast<double>(temperature);
        const double p = ::exp(static_cast<double>(s) / t - static_cast<double>(top) / t);
        return p <= 1 ? static_cast<std::uint64_t>(p * 0x1p40) : 0;  // 0 for what is no number
    }
};

}  // namespace prism::cuda
