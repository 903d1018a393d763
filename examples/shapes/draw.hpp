// Drawing a scene: anti-aliased, in integers, so that every compiler paints the same bytes.
//
//     prism::write_png("scene.png", draw(scene));
//
// Each pixel row is crossed by eight lines; on each, a shape is a few spans whose ends are known to a 32nd of a pixel.
// What the spans cover of a pixel, of 256, is how much of the paint it takes.
#pragma once

#include "font.hpp"
#include "scene.hpp"

#include "prism/image/image.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

namespace prism::shapes {

namespace detail {

inline constexpr int lines = 8, columns = 32;  // of a pixel; lines * columns = 256

class Canvas {
public:
    Image image;

    explicit Canvas(const Scene& scene)
        : image(Image::sized(static_cast<std::size_t>(scene.height), static_cast<std::size_t>(scene.width))), width_(scene.width), height_(scene.height) {}

    void set(int x, int y, Rgb color) { std::copy(color.begin(), color.end(), at(x, y)); }

    /// Paints where `spans(y, emit)` says: it calls emit(x1, x2) for each span on the line at height y. Lengths are
    /// scene units in y, and 32nds of a pixel in x. `paint(k)` is the colour of the k-th pixel row below y1.
    template <class Spans, class Paint>
    void fill(int y1, int y2, Spans&& spans, Paint&& paint) {
        const int top = std::max(y1 / px, 0), bottom = std::min((y2 + px - 1) / px, height_);
        for (int row = top; row < bottom; ++row) {
            int left = width_, right = 0;
            for (int line = 0; line < lines; ++line)
                spans(row * px + 2 * line + 1, [&](int x1, int x2) {
                    x1 = std::max(x1, 0), x2 = std::min(x2, width_ * columns);
                    if (x1 >= x2) return;
                    const int first = x1 / columns, last = (x2 - 1) / columns;
                    left = std::min(left, first), right = std::max(right, last + 1);
                    for (int x = first; x <= last; ++x)
                        cover_[static_cast<std::size_t>(x)] += std::min(x2, (x + 1) * columns) - std::max(x1, x * columns);
                });
            const Rgb color = paint(row - y1 / px);
            for (int x = left; x < right; ++x) {
                const int     part = std::exchange(cover_[static_cast<std::size_t>(x)], 0);
                std::uint8_t* pixel = at(x, row);
                for (std::size_t c = 0; c < 3; ++c) pixel[c] = static_cast<std::uint8_t>((pixel[c] * (256 - part) + color[c] * part + 128) >> 8);
            }
        }
    }

    template <class Paint>
    void polygon(std::span<const Point> points, Paint&& paint) {
        int y1 = points[0].y, y2 = y1;
        for (const Point p : points) y1 = std::min(y1, p.y), y2 = std::max(y2, p.y);
        const auto spans = [&](int y, auto&& emit) {
            std::array<int, 16> cuts;
            std::size_t         n = 0;
            for (std::size_t i = 0; i < points.size(); ++i) {
                Point a = points[i], b = points[(i + 1) % points.size()];
                if (a.y > b.y) std::swap(a, b);
                if (y < a.y || y >= b.y) continue;
                cuts[n++] = 2 * a.x + 2 * (b.x - a.x) * (y - a.y) / (b.y - a.y);
            }
            std::sort(cuts.begin(), cuts.begin() + static_cast<std::ptrdiff_t>(n));
            for (std::size_t i = 0; i + 1 < n; i += 2) emit(cuts[i], cuts[i + 1]);
        };
        fill(y1, y2, spans, paint);
    }

    /// A disc, or what lies between two circles.
    template <class Paint>
    void disc(Point center, int radius, int hole, Paint&& paint) {
        const auto reach = [](int r, int dy) { return square_root(static_cast<std::uint64_t>(4 * (r * r - dy * dy))); };  // half a chord, in 32nds
        const auto spans = [&](int y, auto&& emit) {
            const int dy = std::abs(y - center.y), x = 2 * center.x;
            if (dy >= radius) return;
            const int outer = reach(radius, dy), inner = dy < hole ? reach(hole, dy) : 0;
            if (inner == 0) return emit(x - outer, x + outer);
            emit(x - outer, x - inner), emit(x + inner, x + outer);
        };
        fill(center.y - radius, center.y + radius, spans, paint);
    }

    /// A letter with its upper left corner at a pixel; each dot is `scale` pixels wide.
    void letter(char c, int x, int y, int scale, Rgb color) {
        for (int row = 0; row < glyph_height * scale; ++row)
            for (int column = 0; column < glyph_width * scale; ++column)
                if (dot(c, column / scale, row / scale)) set(x + column, y + row, color);
    }

private:
    std::uint8_t* at(int x, int y) { return image.row(static_cast<std::size_t>(y)) + 3 * x; }

    int                           width_, height_;
    std::array<int, longest_side> cover_{};  // of the pixel row that is being filled
};

inline void paint_background(Canvas& canvas, const Scene& scene) {
    Random noise{scene.seed, scene.id, Purpose::noise};
    for (int y = 0; y < scene.height; ++y)
        for (int x = 0; x < scene.width; ++x) {
            Rgb color = scene.shade;
            if (scene.backdrop == Backdrop::gradient)
                for (std::size_t c = 0; c < 3; ++c)
                    color[c] = static_cast<std::uint8_t>((scene.shade[c] * (scene.width - x) + scene.second[c] * x) / scene.width);
            if (scene.backdrop == Backdrop::checks && (x / 8 + y / 8) % 2 == 1) color = scene.second;
            if (scene.backdrop == Backdrop::speckles && noise.below(5) == 0) color = scene.second;
            canvas.set(x, y, color);
        }
}

inline void paint_object(Canvas& canvas, const Object& o) {
    Rgb band;  // darker stripes, three pixels high
    for (std::size_t c = 0; c < 3; ++c) band[c] = static_cast<std::uint8_t>(o.tone[c] / 2);
    const auto paint = [&](int row) { return o.texture == Texture::striped && row / 3 % 2 == 1 ? band : o.tone; };
    if (o.shape == Shape::circle || o.shape == Shape::ring) return canvas.disc(o.center, o.radius, o.shape == Shape::ring ? o.radius * 9 / 16 : 0, paint);
    std::array<Point, 12> points;
    const auto            unit = corners(o.shape);
    for (std::size_t i = 0; i < unit.size(); ++i) points[i] = {o.center.x + unit[i].x * o.radius / 1024, o.center.y + unit[i].y * o.radius / 1024};
    canvas.polygon(std::span(points).first(unit.size()), paint);
}

/// From the edge of one disc to that of the other: a bar two pixels wide and a head of eight.
inline void paint_arrow(Canvas& canvas, Point from, Point to, Rgb color) {
    const int dx = to.x - from.x, dy = to.y - from.y, length = square_root(squared_distance(from, to));
    const auto at = [&](int along, int across) { return Point{from.x + (dx * along - dy * across) / length, from.y + (dy * along + dx * across) / length}; };
    const int  begin = node_radius, end = length - node_radius - px / 2, neck = std::max(end - 6 * px, begin);
    const std::array<Point, 7> points{at(begin, -px), at(neck, -px), at(neck, -4 * px), at(end, 0), at(neck, 4 * px), at(neck, px), at(begin, px)};
    canvas.polygon(points, [&](int) { return color; });
}

/// The mean over a square window, twice, so wide that no shape is left. Edges repeat.
inline void blur(Image& image) {
    constexpr int    reach = 12;
    const auto       pass = [&](std::size_t n, std::size_t stride, std::uint8_t* first) {
        std::array<int, longest_side> values;
        for (std::size_t i = 0; i < n; ++i) values[i] = first[i * stride];
        for (std::size_t i = 0; i < n; ++i) {
            int sum = 0;
            for (int d = -reach; d <= reach; ++d) sum += values[static_cast<std::size_t>(std::clamp(static_cast<int>(i) + d, 0, static_cast<int>(n) - 1))];
            first[i * stride] = static_cast<std::uint8_t>((sum + reach) / (2 * reach + 1));
        }
    };
    for (int twice = 0; twice < 2; ++twice) {
        for (std::size_t y = 0; y < image.height(); ++y)
            for (std::size_t c = 0; c < 3; ++c) pass(image.width(), 3, image.row(y) + c);
        for (std::size_t i = 0; i < image.row_bytes(); ++i) pass(image.height(), image.row_bytes(), image.row(0) + i);
    }
}

}  // namespace detail

/// The picture of a scene.
inline Image draw(const Scene& scene) {
    using namespace detail;
    Canvas    canvas{scene};
    const Rgb ink = grey(scene.dark ? 245 : 15), paper = grey(scene.dark ? 15 : 245);
    paint_background(canvas, scene);
    for (const Object& o : scene.objects) paint_object(canvas, o);
    if (scene.label)
        for (int x = scene.label->at.x / px; const char c : scene.label->text) canvas.letter(c, x, scene.label->at.y / px, 2, ink), x += 12;
    for (const Arrow& a : scene.arrows) paint_arrow(canvas, scene.nodes[a.from].center, scene.nodes[a.to].center, ink);
    for (const Node& node : scene.nodes) {
        canvas.disc(node.center, node_radius, 0, [&](int) { return ink; });
        canvas.disc(node.center, node_radius - px, 0, [&](int) { return paper; });
        canvas.letter(node.letter, node.center.x / px - 5, node.center.y / px - 7, 2, ink);
    }
    if (scene.damage == Damage::blurred) blur(canvas.image);
    return std::move(canvas.image);
}

}  // namespace prism::shapes
