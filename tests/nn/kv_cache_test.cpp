// The cache of keys and values: what fits, what is forgotten, what is refused.
#include "prism/nn/kv_cache.hpp"
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/dry.hpp"

#include <doctest/doctest.h>

#include <limits>
#include <utility>

using namespace prism;

TEST_CASE("nn/kv_cache: rows of layers, heads, keys and values do not overlap") {
    Cpu          be{{.threads = 1}};
    KvCache<Cpu> cache{be, 3, 2, 4, 5};
    CHECK((cache.capacity() == 5 && cache.n_layers() == 3 && cache.length() == 0 && cache.head_stride() == 20));
    float number = 0;
    const auto each = [&](auto&& f) {
        for (std::size_t layer = 0; layer < 3; ++layer)
            cache.visit(layer, 0, 5, [&](auto keys, auto values) {
                if constexpr (std::is_same_v<decltype(keys), View<float, host, dyn, dyn>>)
                    for (const auto& m : {keys, values})
                        for (std::size_t head = 0; head < 2; ++head)
                            for (std::size_t i = 0; i < 5; ++i)
                                for (std::size_t j = 0; j < 4; ++j) f((m.row(i).data() + head * cache.head_stride())[j]);
            });
    };
    each([&](float& x) { x = number++; });
    number = 0;
    bool same = true;
    each([&](float& x) { same = same && x == number++; });
    CHECK(same);
    CHECK(number == 3 * 2 * 2 * 5 * 4);
    cache.visit(1, 2, 3, [&](auto keys, auto) { CHECK(static_cast<float>(keys(0, 0)) == 80 + 2 * 4); });
    CHECK_THROWS_AS((KvCache<Cpu>{be, 1, 1, 4, 5, Dtype::f16}), ConfigError);
}

TEST_CASE("nn/kv_cache: truncate forgets the end only, and room is checked before it is used") {
    Cpu          be{{.threads = 1}};
    KvCache<Cpu> cache{be, 1, 1, 2, 6};
    cache.reserve(6);
    cache.advance(4);
    cache.truncate(9);  // longer than it is: nothing to forget
    CHECK(cache.length() == 4);
    CHECK_NOTHROW(cache.reserve(2));
    CHECK_THROWS_WITH_AS(cache.reserve(3), "'tokens' is 7; allowed: at most 6 in this cache", ConfigError);
    CHECK_THROWS_AS(cache.reserve(std::numeric_limits<std::size_t>::max()), ConfigError);
    cache.truncate(1);
    CHECK(cache.length() == 1);
    cache.truncate(0);
    CHECK(cache.length() == 0);

    cache.advance(3);
    const KvCache<Cpu> moved = std::move(cache);
    CHECK(moved.length() == 3);
}

TEST_CASE("nn/kv_cache: more tokens than memory has addresses are refused, not taken at their word") {
    Cpu be{{.threads = 1}};
    for (std::size_t capacity : {std::numeric_limits<std::size_t>::max(), std::size_t{1} << 61, (std::size_t{1} << 57) + 1})
        CHECK_THROWS_AS((KvCache<Cpu>{be, 32, 32, 128, capacity}), ConfigError);
    Dry dry;
    CHECK_NOTHROW(KvCache<Dry>{dry, 32, 32, 128, 1 << 20});
    CHECK_NOTHROW(KvCache<Cpu>{be, 0, 32, 128, 100});
}
