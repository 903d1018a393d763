// The pool of threads: every piece once, errors to the caller, nested loops, several callers.
#include "prism/backend/cpu/pool.hpp"
#include "prism/backend/cpu/isa.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace prism;

TEST_CASE("backend/pool: every index is in exactly one piece, whatever the sizes and the number of threads") {
    for (std::size_t threads : {1, 2, 3, 8}) {
        ThreadPool pool{threads};
        CHECK(pool.size() == threads);
        for (std::size_t n : {0, 1, 2, 15, 16, 17, 1000})
            for (std::size_t piece : {1, 3, 16, 1000, 5000}) {
                std::vector<std::atomic<int>> visits(n);
                std::atomic<bool>             well_cut{true};
                pool.parallel_for(n, piece, [&](std::size_t begin, std::size_t end) {
                    if (begin % piece != 0 || end > n || (end != n && end - begin != piece)) well_cut = false;
                    for (std::size_t i = begin; i < end; ++i) ++visits[i];
                });
                CHECK(well_cut);
                CHECK(std::ranges::all_of(visits, [](const auto& v) { return v == 1; }));
            }
    }
}

TEST_CASE("backend/pool: an exception of any piece reaches the caller as itself, and the pool stays usable") {
    for (std::size_t threads : {1, 2, 5}) {
        ThreadPool pool{threads};
        for (std::size_t thrower : {0, 7, 63}) {
            std::atomic<int> inside{0};
            try {
                pool.parallel_for(64, 1, [&](std::size_t i, std::size_t) {
                    ++inside;
                    if (i == thrower) {
                        --inside;
                        throw std::out_of_range("piece " + std::to_string(i));
                    }
                    --inside;
                });
                FAIL("nothing was thrown");
            } catch (const std::out_of_range& e) {
                CHECK(e.what() == "piece " + std::to_string(thrower));
            }
            CHECK(inside == 0);  // nobody is still at work when the caller goes on
            std::atomic<int> sum{0};
            pool.parallel_for(100, 7, [&](std::size_t begin, std::size_t end) { sum += static_cast<int>(end - begin); });
            CHECK(sum == 100);
        }
        CHECK_THROWS_AS(pool.parallel_for(64, 1, [](std::size_t, std::size_t) { throw std::runtime_error("all of them"); }), std::runtime_error);
    }
}

TEST_CASE("backend/pool: loops nest, also over another pool") {
    ThreadPool                    pool{3}, other{2};
    std::vector<std::atomic<int>> visits(20 * 30);
    pool.parallel_for(20, 1, [&](std::size_t i, std::size_t) {
        pool.parallel_for(15, 2, [&](std::size_t begin, std::size_t end) {
            for (std::size_t j = begin; j < end; ++j) ++visits[i * 30 + j];
        });
        other.parallel_for(15, 2, [&](std::size_t begin, std::size_t end) {
            for (std::size_t j = begin; j < end; ++j) ++visits[i * 30 + 15 + j];
        });
    });
    CHECK(std::ranges::all_of(visits, [](const auto& v) { return v == 1; }));
}

TEST_CASE("backend/pool: several callers at once each get their own loop whole") {
    ThreadPool               pool{3};
    std::atomic<int>         wrong{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c)
        callers.emplace_back([&, c] {
            for (int round = 0; round < 50; ++round) {
                std::vector<int> values(101, 0);
                try {
                    pool.parallel_for(values.size(), 4, [&](std::size_t begin, std::size_t end) {
                        if (c == 3 && begin == 48) throw std::runtime_error("of the fourth caller");
                        for (std::size_t i = begin; i < end; ++i) values[i] += c + 1;
                    });
                    wrong += c == 3 || std::accumulate(values.begin(), values.end(), 0) != 101 * (c + 1);
                } catch (const std::runtime_error&) {
                    wrong += c != 3;
                }
            }
        });
    for (auto& c : callers) c.join();
    CHECK(wrong == 0);
}

TEST_CASE("backend/pool: threads prepare before the pool is there, and what that throws reaches who makes it") {
    static std::atomic<int> prepared;
    prepared = 0;
    const ThreadPool pool{4, [] { ++prepared; }};
    CHECK(prepared == 3);
    CHECK_THROWS_AS((ThreadPool{4, [] { throw std::runtime_error("no memory"); }}), std::runtime_error);
}

TEST_CASE("backend/pool: there is at least one core, and an instruction set of every allowed name") {
    CHECK(physical_cores() >= 1);
    for (Isa isa : all_isas) {
        if (runs(isa)) CHECK(isa_from_name(to_string(isa)) == isa);
        else CHECK_THROWS_AS(isa_from_name(to_string(isa)), ConfigError);
    }
    CHECK(runs(best_isa()));
    CHECK((!runs(Isa::amx) || best_isa() == Isa::amx));
    CHECK_THROWS_WITH_AS(isa_from_name("sse9"), doctest::Contains("'isa' is sse9; allowed: portable"), ConfigError);
}
