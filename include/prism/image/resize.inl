// What resize.hpp declares. prism::compiled has it compiled, and whoever links that does not read this.
#pragma once

#include "prism/core/error.hpp"
#include "prism/image/image.hpp"
#include "prism/image/resize.hpp"
#include "prism/image/resize_kernels.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

namespace prism {

namespace image_detail {

/// The rows of a picture that arrive from the top, each readable `slack_bytes` past its end: the last ones are copied
/// to where that holds.
class PaddedRows {
public:
    explicit PaddedRows(const Image& image)
        : image_(image), n_tail_(std::min(image.height(), slack_bytes / image.row_bytes() + 1)),
          tail_(n_tail_ * image.row_bytes() + slack_bytes) {}

    /// `n` rows of the picture are there. Returns how many can be read, with what follows them in memory.
    std::size_t arrive(std::size_t n) {
        if (n < image_.height()) return n - std::min(n, n_tail_);
        std::copy(image_.row(image_.height() - n_tail_), image_.row(image_.height()), tail_.begin());
        return n;
    }
    const std::uint8_t* operator[](std::size_t y) const {
        const std::size_t n_direct = image_.height() - n_tail_;
        return y < n_direct ? image_.row(y) : tail_.data() + (y - n_direct) * image_.row_bytes();
    }

private:
    const Image&              image_;
    std::size_t               n_tail_;
    std::vector<std::uint8_t> tail_;
};

/// A stripe of columns of the result, streaming: a source row passes the horizontal kernel once and waits in a ring for
/// the output rows that need it.
template <class Kernel>
class Stripe {
public:
    Stripe(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out)
        : canvas_(canvas), to_(to), part_(part), out_(out), row_bytes_(3 * part.width + slack_bytes),
          n_ring_(std::min(max_taps(canvas.size.height, to.height), canvas.image.height()) + block),
          ring_(n_ring_ * row_bytes_), ground_(row_bytes_) {
        for (std::size_t x = 0; x < part.width; ++x) {
            taps_.set(canvas.size.width, to.width, part.left + x);
            std::uint32_t all = 0;
            for (std::int32_t w : taps_.weights) all += static_cast<std::uint32_t>(w);
            const auto outside = static_cast<std::uint32_t>(taps_.clip(canvas.left, canvas.image.width()));
            Start      start;
            for (std::size_t c = 0; c < 3; ++c) {
                start[c] = half_weight + canvas.fill[c] * outside;
                ground_[3 * x + c] = to_pixel(half_weight + canvas.fill[c] * all);
            }
            kernel_.add_column(taps_, start);
        }
        taps_.set(canvas.size.height, to.height, part.top);
        ready_ = std::min(taps_.first > canvas.top ? taps_.first - canvas.top : 0, canvas.image.height());
    }

    /// Makes what it can of the first `n_rows` source rows. Returns how many rows of the stripe are done.
    std::size_t advance(const PaddedRows& source, std::size_t n_rows) {
        for (; done_ < part_.height; ++done_) {
            taps_.set(canvas_.size.height, to_.height, part_.top + done_);
            const std::int32_t outside = taps_.clip(canvas_.top, canvas_.image.height());
            if (!bring(source, n_rows, taps_.first + taps_.weights.size())) return done_;
            rows_.clear();
            for (std::size_t k = 0; k < taps_.weights.size(); ++k) rows_.push_back(slot(taps_.first + k));
            if (outside != 0) rows_.push_back(ground_.data()), taps_.weights.push_back(outside);
            kernel_.vertical(rows_, taps_.weights, out_.data() + done_ * out_.stride(0), 3 * part_.width);
        }
        return done_;
    }

private:
    static constexpr std::size_t block = 8;  // rows that the horizontal kernel takes at a time

    std::uint8_t* slot(std::size_t y) { return ring_.data() + y % n_ring_ * row_bytes_; }

    /// Brings source rows before `end` into the ring, by whole blocks. False when they are not there yet.
    bool bring(const PaddedRows& source, std::size_t n_rows, std::size_t end) {
        while (ready_ < end) {
            const std::size_t n = std::min(block, canvas_.image.height() - ready_);
            if (n_rows < ready_ + n) return false;
            std::array<const std::uint8_t*, block> from;
            std::array<std::uint8_t*, block>       into;
            for (std::size_t k = 0; k < n; ++k, ++ready_) from[k] = source[ready_], into[k] = slot(ready_);
            kernel_.horizontal({from.data(), n}, {into.data(), n});
        }
        return true;
    }

    Canvas                                  canvas_;
    Size                                    to_;
    Window                                  part_;
    View<std::uint8_t, host, dyn, dyn, dyn> out_;
    std::size_t                             row_bytes_, n_ring_;
    std::vector<std::uint8_t>               ring_;
    std::vector<std::uint8_t>               ground_;  // a row that misses the picture
    Kernel                                  kernel_;
    Taps                                    taps_;
    std::vector<const std::uint8_t*>        rows_;
    std::size_t                             ready_ = 0;  // source rows before this one are in the ring
    std::size_t                             done_ = 0;
};

/// A window in stripes of columns, narrow enough for the horizontal weights to take 25 megabytes at most. All but a
/// very wide one are a single stripe, which follows the rows as they arrive.
template <class Kernel>
class WindowResizing final : public Resizing {
public:
    WindowResizing(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out)
        : canvas_(canvas), to_(to), part_(part), out_(out), source_(canvas.image),
          stripe_width_(std::max<std::size_t>(1, (std::size_t{1} << 19) / max_taps(canvas.size.width, to.width))) {
        if (part.width <= stripe_width_) whole_.emplace(canvas, to, part, out);
    }

    std::size_t advance(std::size_t n_rows) override {
        const std::size_t n_usable = source_.arrive(n_rows);
        if (whole_) return whole_->advance(source_, n_usable);
        if (n_rows < canvas_.image.height()) return 0;
        for (std::size_t x = 0; x < part_.width; x += stripe_width_) {
            const std::size_t n = std::min(stripe_width_, part_.width - x);
            Stripe<Kernel>{canvas_,
                           to_,
                           {part_.top, part_.left + x, part_.height, n},
                           {out_.data() + 3 * x, {part_.height, n, 3}, out_.strides()}}
                .advance(source_, n_usable);
        }
        return part_.height;
    }

private:
    Canvas                                  canvas_;
    Size                                    to_;
    Window                                  part_;
    View<std::uint8_t, host, dyn, dyn, dyn> out_;
    PaddedRows                              source_;
    std::size_t                             stripe_width_;
    std::optional<Stripe<Kernel>>           whole_;
};

template <class Kernel>
std::unique_ptr<Resizing> resizing_with(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out) {
    return std::make_unique<WindowResizing<Kernel>>(canvas, to, part, out);
}

template <class = void>
std::unique_ptr<Resizing> start_resizing(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (canvas.size.height / to.height < max_simd_scale && canvas.size.width / to.width < max_simd_scale) {
        if (Avx512Resize::available()) return resizing_with<Avx512Resize>(canvas, to, part, out);
        if (Avx2Resize::available()) return resizing_with<Avx2Resize>(canvas, to, part, out);
    }
#endif
    return resizing_with<PortableResize>(canvas, to, part, out);
}

}  // namespace image_detail

template <class>
BicubicStream::BicubicStream(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out) : height_(part.height) {
    const Image& image = canvas.image;
    expect_pixels("resize_bicubic", image);
    expect("resize_bicubic", "out", {part.height, part.width, 3}, out);
    const auto within = [](std::size_t first, std::size_t n, std::size_t extent) {
        return first <= extent && n <= extent - first;
    };
    const auto pair = [](std::size_t a, std::size_t b) { return to_string(std::array{a, b}); };
    if (!within(canvas.top, image.height(), canvas.size.height) ||
        !within(canvas.left, image.width(), canvas.size.width))
        throw ShapeError{"resize_bicubic", "canvas", "room for a picture of " + pair(image.height(), image.width()),
                         pair(canvas.size.height, canvas.size.width) + " from " + pair(canvas.top, canvas.left) +
                             " on"};
    if (!within(part.top, part.height, to.height) || !within(part.left, part.width, to.width))
        throw ShapeError{"resize_bicubic", "window", "one within " + pair(to.height, to.width),
                         pair(part.height, part.width) + " from " + pair(part.top, part.left) + " on"};
    if (part.height == 0 || part.width == 0) return;
    if (out.stride(1) != 3)
        throw ShapeError{"resize_bicubic", "out", "dense pixels",
                         "a stride of " + std::to_string(out.stride(1)) + " bytes"};
    resizing_ = image_detail::start_resizing(canvas, to, part, out);
}

template <class>
void resize_bicubic(const Canvas& canvas, Size to, Window part, View<std::uint8_t, host, dyn, dyn, dyn> out) {
    BicubicStream{canvas, to, part, out}.advance(canvas.image.height());
}

template <class>
Image resize_bicubic(const Image& image, Size to) {
    Image out = Image::sized(to.height, to.width);
    resize_bicubic({.image = image, .size = {image.height(), image.width()}}, to, {0, 0, to.height, to.width},
                   out.view());
    return out;
}

template <class>
Image crop_and_resize(const Image& image, Box box, Size to) {
    expect_pixels("crop_and_resize", image);
    struct Sample {
        std::size_t below, above;
        float       lerp;
        bool        inside;
    };
    const auto samples = [](std::size_t n, std::size_t m, float begin, float end) {
        const auto          last = static_cast<float>(n - 1);
        const float         step = m > 1 ? (end - begin) * last / static_cast<float>(m - 1) : 0.0f;
        std::vector<Sample> list(m);
        for (std::size_t i = 0; i < m; ++i) {
            const float at = m > 1 ? begin * last + static_cast<float>(i) * step : 0.5f * (begin + end) * last;
            if (!(at >= 0 && at <= last)) continue;
            const float floor = std::floor(at);
            list[i] = {static_cast<std::size_t>(floor), static_cast<std::size_t>(std::ceil(at)), at - floor, true};
        }
        return list;
    };
    const auto rows = samples(image.height(), to.height, box.top, box.bottom);
    const auto columns = samples(image.width(), to.width, box.left, box.right);

    Image out = Image::sized(to.height, to.width);
    for (std::size_t y = 0; y < to.height; ++y)
        for (std::size_t x = 0; x < to.width; ++x)
            for (std::size_t c = 0; c < 3; ++c) {
                const auto& [top, bottom, down, row_inside] = rows[y];
                const auto& [left, right, along, column_inside] = columns[x];
                const auto value = [&, c](std::size_t row, std::size_t column) {
                    return static_cast<float>(image.pixels(row, column, c)) * (1.0f / 255.0f);
                };
                float v = 0;
                if (row_inside && column_inside) {
                    const float upper = value(top, left) + (value(top, right) - value(top, left)) * along;
                    const float lower = value(bottom, left) + (value(bottom, right) - value(bottom, left)) * along;
                    v = std::clamp(upper + (lower - upper) * down, 0.0f, 1.0f);
                }
                out.pixels(y, x, c) = static_cast<std::uint8_t>(std::min(v * 255.5f, 255.0f));
            }
    return out;
}

}  // namespace prism
