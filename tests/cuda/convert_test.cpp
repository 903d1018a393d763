// Weights on their way to the device: the bits of the processor's encoders, whatever they come from.
#include "device.hpp"
#include "weights.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

using namespace prism;
using namespace prism::test;

namespace {

constexpr std::array<std::size_t, 7> widths{1, 31, 32, 33, 64, 100, 592};

/// f(From{}, To{}) for every pair of formats.
template <class Fn>
void for_pairs(Fn&& f) {
    const auto over = [&]<Format... F>(format_list<F...>) {
        const auto from = [&]<Format From>(From) { (f(From{}, F{}), ...); };
        (from(F{}), ...);
    };
    over(all_formats{});
}
template <class Fn>
void for_formats(Fn&& f) {
    const auto over = [&]<Format... F>(format_list<F...>) { (f(F{}), ...); };
    over(all_formats{});
}

/// Rows with what an encoder may stumble over: zeros of both signs, equal magnitudes, halves, tiny and large numbers.
std::vector<float> difficult_rows(std::size_t rows, std::size_t cols, unsigned seed) {
    std::vector<float> v = normal_rows(rows, cols, seed);
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < cols; ++j) {
            float& x = v[i * cols + j];
            if (i % 5 == 1) x = std::round(x * 2) / 2;
            if (i % 5 == 2) x = j % 3 == 0 ? 0.0f : -0.0f;
            if (i % 5 == 3) x *= 1e-6f;
            if (i % 5 == 4) x = std::fabs(x) * 20 + 100;
        }
    return v;
}

}  // namespace

TEST_CASE("cuda/convert: rows of a file in any format become the device's rows, with the bits of decode and encode") {
    for_pairs([]<Format From, Format To>(From, To) {
        for (std::size_t cols : widths)
            for (std::size_t offset : {std::size_t{0}, std::size_t{2}}) {
                constexpr std::size_t rows = 11;
                TestDriver        driver(Wishes{offset ? cuda::Order::shuffled : cuda::Order::forward});
                CAPTURE(From::name); CAPTURE(To::name); CAPTURE(cols); CAPTURE(offset);
                const auto source = encoded<From>(difficult_rows(rows, cols, 7), rows, cols);
                const auto values = decoded<From>(source, rows, cols);
                const auto src = on_device(driver, source, offset);
                const auto wanted = [&] {
                    if constexpr (From::dtype == To::dtype) return device_rows<To>(source, rows, cols);
                    else return device_rows<To>(encoded<To>(values, rows, cols), rows, cols);
                }();
                REQUIRE(wanted.size() == cuda::device_bytes(To::dtype, rows, cols));
                const auto dst = poisoned(driver, wanted.size() + 64);
                cuda::convert_rows(driver, From::dtype, src.template as<std::byte>() + offset, rows, cols, To::dtype, dst.template as<std::byte>());
                CHECK(from_device<std::byte>(driver, dst.data(), wanted.size()) == wanted);
                CHECK(from_device<std::byte>(driver, dst.template as<std::byte>() + wanted.size(), 64) == std::vector<std::byte>(64, std::byte{0xff}));
            }
    });
}

TEST_CASE("cuda/convert: a matrix of a file in any format is placed in any other, with the bits of decode and encode") {
    for_pairs([]<Format From, Format To>(From, To) {
        constexpr std::size_t rows = 5, cols = 96;
        Device     be;
        const auto source = encoded<From>(difficult_rows(rows, cols, 3), rows, cols);
        TensorInfo t{"w", From::dtype, {rows, cols}, {}, reinterpret_cast<const std::byte*>(source.data()), nullptr, "(test)"};
        CAPTURE(From::name); CAPTURE(To::name);
        const auto wanted = device_rows<To>(From::dtype == To::dtype ? encoded<To>(difficult_rows(rows, cols, 3), rows, cols) : encoded<To>(decoded<From>(source, rows, cols), rows, cols), rows, cols);
        const Placed placed = be.place_matrix(t, To::dtype, rows);
        CHECK(from_device<std::byte>(be.driver(), placed.data, wanted.size()) == wanted);
        if (From::values_per_block > 1) CHECK_THROWS_AS(be.place(t, Dtype::f32), LoadError);
    });
}

TEST_CASE("cuda/convert: panels of the processor become the device's rows, from any row on") {
    for_formats([]<Format F>(F) {
        for (std::size_t cols : widths)
            for (std::size_t first : {std::size_t{0}, std::size_t{16}, std::size_t{5}}) {
                constexpr std::size_t rows = 37;
                TestDriver        driver(Wishes{});
                CAPTURE(F::name); CAPTURE(cols); CAPTURE(first);
                const auto             source = encoded<F>(difficult_rows(rows, cols, 8), rows, cols);
                std::vector<std::byte> panels(panels_bytes<F>(rows, cols));
                interleave<F>(Packed<F, host>{source.data(), rows, cols, blocks_per_row<F>(cols)}, panels.data(), 0, (rows + panel_width - 1) / panel_width);
                auto       wanted = device_rows<F>(source, rows, cols);
                const auto bytes = wanted.size() / rows;
                wanted.erase(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(first * bytes));
                const auto src = on_device(driver, panels);
                const auto dst = poisoned(driver, wanted.size());
                cuda::convert_panels(driver, F::dtype, src.template as<std::byte>(), static_cast<std::int64_t>(first), static_cast<std::int64_t>(rows - first),
                                     static_cast<std::int64_t>(cols), F::dtype, dst.template as<std::byte>());
                CHECK(from_device<std::byte>(driver, dst.data(), wanted.size()) == wanted);
            }
    });
}

TEST_CASE("cuda/convert: panels become another format, too") {
    constexpr std::size_t rows = 19, cols = 70;
    TestDriver        driver(Wishes{});
    const auto            source = encoded<bf16>(difficult_rows(rows, cols, 9), rows, cols);
    std::vector<std::byte> panels(panels_bytes<bf16>(rows, cols));
    interleave<bf16>(Packed<bf16, host>{source.data(), rows, cols, cols}, panels.data(), 0, 2);
    const auto wanted = device_rows<q4m>(encoded<q4m>(decoded<bf16>(source, rows, cols), rows, cols), rows, cols);
    const auto src = on_device(driver, panels), dst = poisoned(driver, wanted.size());
    cuda::convert_panels(driver, Dtype::bf16, src.as<std::byte>(), 0, rows, cols, Dtype::q4m, dst.as<std::byte>());
    CHECK(from_device<std::byte>(driver, dst.data(), wanted.size()) == wanted);
}

TEST_CASE("cuda/convert: single values become f32 and no more than those are written") {
    TestDriver driver(Wishes{});
    const auto     values = difficult_rows(1, 1000, 10);
    const auto     check = [&]<Format F>(F) {
        for (std::size_t n : {std::size_t{1}, std::size_t{255}, std::size_t{999}}) {
            const auto source = encoded<F>(std::span(values).first(n), 1, n);
            const auto src = on_device(driver, source, 2), dst = poisoned(driver, (n + 1) * sizeof(float));
            cuda::convert_values(driver, F::dtype, src.template as<std::byte>() + 2, static_cast<std::int64_t>(n), dst.template as<float>());
            const auto got = from_device<float>(driver, dst.data(), n + 1);
            CHECK(std::vector<float>(got.begin(), got.end() - 1) == decoded<F>(source, 1, n));
            CHECK(std::isnan(got.back()));
        }
    };
    check(f32{}), check(f16{}), check(bf16{});
}

TEST_CASE("cuda/convert: gathered rows are the decoder's, from the file's rows and from the device's") {
    for_formats([]<Format F>(F) {
        for (std::size_t cols : widths)
            for (bool placed : {false, true}) {
                constexpr std::size_t rows = 23, first = 3;
                TestDriver        driver(Wishes{cuda::Order::reversed});
                CAPTURE(F::name); CAPTURE(cols); CAPTURE(placed);
                const auto source = encoded<F>(difficult_rows(rows, cols, 11), rows, cols);
                const auto values = decoded<F>(source, rows, cols);
                const auto bytes = placed ? on_device(driver, device_rows<F>(source, rows, cols)) : on_device(driver, source, 2);

                const std::vector<std::int32_t> ids{0, 5, 5, 19, -1, 20, 1};
                const auto                      list = on_device(driver, ids);
                AnyPacked<device>               w;
                w.dtype = F::dtype, w.rows = 20, w.cols = cols;
                if (placed) w.panels = bytes.template as<std::byte>(), w.first = first;
                else w.data = bytes.template as<std::byte>() + 2 + first * blocks_per_row<F>(cols) * sizeof(typename F::block), w.stride = blocks_per_row<F>(cols);

                const std::size_t ld = cols + 3;
                const auto        y = poisoned(driver, ids.size() * ld * sizeof(float));
                cuda::gather(driver, w, list.template as<std::int32_t>(),
                             cuda::Rows<float>{y.template as<float>(), static_cast<std::int32_t>(ids.size()), static_cast<std::int32_t>(cols), static_cast<std::int64_t>(ld)});
                const auto got = from_device<float>(driver, y.data(), ids.size() * ld);
                bool       same = true;
                for (std::size_t i = 0; i < ids.size(); ++i)
                    for (std::size_t j = 0; j < ld; ++j) {
                        const float x = got[i * ld + j];
                        if (j >= cols || ids[i] < 0 || ids[i] >= 20) same = same && std::isnan(x);
                        else same = same && x == values[(static_cast<std::size_t>(ids[i]) + first) * cols + j];
                    }
                CHECK(same);
            }
    });
}
