// Linear probes: what of a scene can be read off the features of a frozen tower by a linear map, and nothing more.
//
//     const auto report = probe(seed, {.rows = 6, .columns = 6, .d = 96},
//                               [&](const Image& picture, std::span<float> out) { tower(picture, out); });   // [36, 96]
//     report.color, report.shape, report.presence, report.count, report.center_px
//
// A tower whose features lose places, or colours, shows it here before any language model is trained on it.
#pragma once

#include "draw.hpp"

#include "prism/core/error.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace prism::shapes {

/// Rows of features [n, d] with what is known of each.
struct ProbeRows {
    std::size_t        d = 0;
    std::vector<float> x{};
    std::vector<int>   label{};               // a class
    std::vector<float> target{};              // [n, 2], where a point is to be found
    std::size_t        n() const { return d ? x.size() / d : 0; }
    std::span<const float> row(std::size_t i) const { return std::span(x).subspan(i * d, d); }
};

/// Brings every feature to mean 0 and deviation 1, as the rows that it was made of have it.
class Standardiser {
public:
    explicit Standardiser(const ProbeRows& rows) : mean_(rows.d), scale_(rows.d) {
        const double n = static_cast<double>(std::max<std::size_t>(1, rows.n()));
        for (std::size_t j = 0; j < rows.d; ++j) {
            double sum = 0, squares = 0;
            for (std::size_t i = 0; i < rows.n(); ++i) sum += static_cast<double>(rows.x[i * rows.d + j]);
            const double mean = sum / n;
            for (std::size_t i = 0; i < rows.n(); ++i) squares += std::pow(static_cast<double>(rows.x[i * rows.d + j]) - mean, 2);
            const double deviation = std::sqrt(squares / n);
            mean_[j] = static_cast<float>(mean), scale_[j] = deviation > 1e-8 ? static_cast<float>(1 / deviation) : 0;
        }
    }
    void operator()(std::span<const float> row, std::span<float> out) const {
        for (std::size_t j = 0; j < mean_.size(); ++j) out[j] = (row[j] - mean_[j]) * scale_[j];
    }

private:
    std::vector<float> mean_, scale_;
};

struct LogisticOptions {
    std::size_t steps = 2000, batch = 128;
    double      rate = 0.02, l2 = 1e-4;
};

/// Logistic regression over classes (softmax), by Adam on shuffled batches with a cosine to 0. One thread, one order of
/// sums: the same numbers each time.
class LogisticProbe {
public:
    /// Labels lie in 0 ... n_classes - 1. Throws ConfigError without rows.
    LogisticProbe(const ProbeRows& rows, std::size_t n_classes, const LogisticOptions& options = {})
        : standard_(rows), d_(rows.d), n_classes_(n_classes), weights_((rows.d + 1) * n_classes) {
        if (rows.n() == 0) throw ConfigError{"rows", "0", "at least one"};
        std::vector<std::size_t> order(rows.n());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
        Random             random{0, {}, Purpose::noise};
        std::vector<float> gradient(weights_.size()), first(weights_.size()), second(weights_.size()), x(d_ + 1), p(n_classes);
        std::size_t        next = order.size();
        for (std::size_t step = 0; step < options.steps; ++step) {
            std::ranges::fill(gradient, 0.0F);
            for (std::size_t n = 0; n < options.batch; ++n, ++next) {
                if (next == order.size()) random.shuffle(order), next = 0;
                const std::size_t i = order[next];
                probabilities(rows.row(i), x, p);
                p[static_cast<std::size_t>(rows.label[i])] -= 1;
                for (std::size_t j = 0; j <= d_; ++j)
                    for (std::size_t c = 0; c < n_classes; ++c) gradient[j * n_classes + c] += x[j] * p[c];
            }
            const double t = static_cast<double>(step), cosine = 0.5 * (1 + std::cos(3.14159265358979 * t / static_cast<double>(options.steps)));
            const auto   rate = static_cast<float>(options.rate * cosine * std::sqrt(1 - std::pow(0.999, t + 1)) / (1 - std::pow(0.9, t + 1)));
            const auto   share = 1 / static_cast<float>(options.batch), decay = static_cast<float>(options.l2);
            for (std::size_t k = 0; k < weights_.size(); ++k) {
                const float g = gradient[k] * share + decay * weights_[k];
                first[k] = 0.9F * first[k] + 0.1F * g, second[k] = 0.999F * second[k] + 0.001F * g * g;
                weights_[k] -= rate * first[k] / (std::sqrt(second[k]) + 1e-8F);
            }
        }
    }

    std::size_t predict(std::span<const float> row) const {
        std::vector<float> x(d_ + 1), p(n_classes_);
        probabilities(row, x, p);
        return static_cast<std::size_t>(std::ranges::max_element(p) - p.begin());
    }
    double accuracy(const ProbeRows& rows) const {
        std::size_t right = 0;
        for (std::size_t i = 0; i < rows.n(); ++i) right += predict(rows.row(i)) == static_cast<std::size_t>(rows.label[i]);
        return rows.n() ? static_cast<double>(right) / static_cast<double>(rows.n()) : 0;
    }

private:
    void probabilities(std::span<const float> row, std::vector<float>& x, std::vector<float>& p) const {
        standard_(row, std::span(x).first(d_));
        x[d_] = 1;
        std::ranges::fill(p, 0.0F);
        for (std::size_t j = 0; j <= d_; ++j)
            for (std::size_t c = 0; c < n_classes_; ++c) p[c] += x[j] * weights_[j * n_classes_ + c];
        const float most = *std::ranges::max_element(p);
        float       sum = 0;
        for (float& v : p) sum += v = std::exp(v - most);
        for (float& v : p) v /= sum;
    }

    Standardiser       standard_;
    std::size_t        d_, n_classes_;
    std::vector<float> weights_;  // [d + 1, n_classes], the bias last
};

/// Ridge regression of the two coordinates of a point, solved exactly.
class PointProbe {
public:
    /// Throws ConfigError without rows.
    explicit PointProbe(const ProbeRows& rows, double ridge = 1e-3) : standard_(rows), d_(rows.d), weights_(2 * (rows.d + 1)) {
        if (rows.n() == 0) throw ConfigError{"rows", "0", "at least one"};
        const std::size_t   m = d_ + 1;
        std::vector<double> a(m * m), b(m * 2);
        std::vector<float>  x(m, 1);
        for (std::size_t i = 0; i < rows.n(); ++i) {
            standard_(rows.row(i), std::span(x).first(d_));
            for (std::size_t j = 0; j < m; ++j) {
                const auto xj = static_cast<double>(x[j]);
                for (std::size_t k = 0; k <= j; ++k) a[j * m + k] += xj * static_cast<double>(x[k]);
                for (std::size_t k = 0; k < 2; ++k) b[j * 2 + k] += xj * static_cast<double>(rows.target[2 * i + k]);
            }
        }
        for (std::size_t j = 0; j < m; ++j) a[j * m + j] += ridge * static_cast<double>(rows.n());
        for (std::size_t j = 0; j < m; ++j)  // Cholesky, in place
            for (std::size_t k = 0; k <= j; ++k) {
                double sum = a[j * m + k];
                for (std::size_t i = 0; i < k; ++i) sum -= a[j * m + i] * a[k * m + i];
                a[j * m + k] = j == k ? std::sqrt(sum) : sum / a[k * m + k];
            }
        for (std::size_t k = 0; k < 2; ++k) {
            for (std::size_t j = 0; j < m; ++j) {
                for (std::size_t i = 0; i < j; ++i) b[j * 2 + k] -= a[j * m + i] * b[i * 2 + k];
                b[j * 2 + k] /= a[j * m + j];
            }
            for (std::size_t j = m; j-- > 0;) {
                for (std::size_t i = j + 1; i < m; ++i) b[j * 2 + k] -= a[i * m + j] * b[i * 2 + k];
                b[j * 2 + k] /= a[j * m + j];
            }
        }
        std::ranges::copy(b, weights_.begin());
    }

    std::array<double, 2> predict(std::span<const float> row) const {
        std::vector<float> x(d_ + 1, 1);
        standard_(row, std::span(x).first(d_));
        std::array<double, 2> point{};
        for (std::size_t j = 0; j <= d_; ++j)
            for (std::size_t k = 0; k < 2; ++k) point[k] += static_cast<double>(x[j]) * weights_[j * 2 + k];
        return point;
    }
    /// The mean distance from where the points are.
    double distance(const ProbeRows& rows) const {
        double sum = 0;
        for (std::size_t i = 0; i < rows.n(); ++i) {
            const auto p = predict(rows.row(i));
            sum += std::hypot(p[0] - static_cast<double>(rows.target[2 * i]), p[1] - static_cast<double>(rows.target[2 * i + 1]));
        }
        return rows.n() ? sum / static_cast<double>(rows.n()) : 0;
    }

private:
    Standardiser        standard_;
    std::size_t         d_;
    std::vector<double> weights_;  // [d + 1, 2]
};

/// The object that most of a patch's part of the picture shows: over half of it lies in the object's box, and no other
/// box reaches into it by more than a tenth. Null where there is no such object. The picture was squeezed to a square, as
/// resize-naive does it, and cut into rows x columns.
inline const Object* object_at(const Scene& scene, std::size_t row, std::size_t column, std::size_t rows, std::size_t columns) {
    const auto    at = [](std::size_t i, std::size_t n, int side) { return static_cast<int>(i * static_cast<std::size_t>(side * px) / n); };
    const Box     patch{at(column, columns, scene.width), at(row, rows, scene.height), at(column + 1, columns, scene.width), at(row + 1, rows, scene.height)};
    const Object* found = nullptr;
    for (const Object& o : scene.objects) {
        const int shared = overlap_area(o.box(), patch);
        if (shared * 10 <= patch.area()) continue;
        if (found || shared * 2 <= patch.area()) return nullptr;
        found = &o;
    }
    return found;
}

/// What a tower gives for a picture: features [rows * columns, d].
struct ProbeOptions {
    std::size_t   rows = 6, columns = 6, d = 96;
    std::uint64_t n_train = 1500, n_test = 500;  // scenes, of the splits train and validation
    LogisticOptions logistic{};
};

/// Accuracies from 0 to 1 of test rows, and beside each what the most frequent answer would score.
struct ProbeReport {
    double color = 0, color_floor = 0;        // of the object at a patch
    double shape = 0, shape_floor = 0;
    double presence = 0, presence_floor = 0;  // whether a colour is anywhere, from the mean of all patches; mean over colours
    double count = 0, count_floor = 0;        // how many objects, from the same mean
    double center_px = 0, center_floor_px = 0;  // mean distance from the centre of the object at a patch; floor: the patch's own
};

/// `features(picture, out)` fills out [rows * columns, d]. Scenes are ordinary ones without damage.
template <class Features>
ProbeReport probe(std::uint64_t seed, const ProbeOptions& options, Features&& features) {
    struct Sets {
        ProbeRows                colors, shapes, centers, counts;
        std::array<ProbeRows, 8> presence;
        double                   own_distance = 0;  // of patches to the centres, summed
    };
    const std::size_t n_patches = options.rows * options.columns, d = options.d;
    const auto        collect = [&](Split split, std::uint64_t n) {
        Sets sets;
        for (ProbeRows* r : {&sets.colors, &sets.shapes, &sets.centers, &sets.counts}) r->d = d;
        for (ProbeRows& r : sets.presence) r.d = d;
        std::vector<float> out(n_patches * d), mean(d);
        const auto         add = [](ProbeRows& to, std::span<const float> x) { to.x.insert(to.x.end(), x.begin(), x.end()); };
        for (std::uint64_t i = 0, index = 0; i < n; ++index) {
            const Scene scene = make_scene(seed, {split, index});
            if (scene.kind != Kind::ordinary || scene.damage != Damage::none) continue;
            ++i;
            features(draw(scene), std::span(out));
            std::ranges::fill(mean, 0.0F);
            for (std::size_t p = 0; p < n_patches; ++p) {
                const auto x = std::span<const float>(out).subspan(p * d, d);
                for (std::size_t j = 0; j < d; ++j) mean[j] += x[j] / static_cast<float>(n_patches);
                const std::size_t row = p / options.columns, column = p % options.columns;
                const Object*     o = object_at(scene, row, column, options.rows, options.columns);
                if (!o) continue;
                add(sets.colors, x), sets.colors.label.push_back(static_cast<int>(o->color));
                add(sets.shapes, x), sets.shapes.label.push_back(static_cast<int>(o->shape));
                add(sets.centers, x);
                const double cx = o->center.x / double{px}, cy = o->center.y / double{px};
                sets.centers.target.push_back(static_cast<float>(cx)), sets.centers.target.push_back(static_cast<float>(cy));
                sets.own_distance += std::hypot(cx - (static_cast<double>(column) + 0.5) * scene.width / static_cast<double>(options.columns),
                                                cy - (static_cast<double>(row) + 0.5) * scene.height / static_cast<double>(options.rows));
            }
            add(sets.counts, mean), sets.counts.label.push_back(static_cast<int>(scene.objects.size()) - 3);
            for (std::size_t c = 0; c < 8; ++c) {
                const auto color = static_cast<Color>(c);
                add(sets.presence[c], mean), sets.presence[c].label.push_back(std::ranges::any_of(scene.objects, [&](const Object& o) { return o.color == color; }));
            }
        }
        return sets;
    };
    const Sets train = collect(Split::train, options.n_train), test = collect(Split::validation, options.n_test);
    const auto floor = [](const ProbeRows& rows) {
        std::array<std::size_t, 16> times{};
        for (const int label : rows.label) ++times[static_cast<std::size_t>(label)];
        return static_cast<double>(*std::ranges::max_element(times)) / static_cast<double>(std::max<std::size_t>(1, rows.n()));
    };
    const auto accuracy = [&](const ProbeRows& from, const ProbeRows& on, std::size_t n_classes) { return LogisticProbe{from, n_classes, options.logistic}.accuracy(on); };

    ProbeReport r;
    r.color = accuracy(train.colors, test.colors, 8), r.color_floor = floor(test.colors);
    r.shape = accuracy(train.shapes, test.shapes, 6), r.shape_floor = floor(test.shapes);
    r.count = accuracy(train.counts, test.counts, 4), r.count_floor = floor(test.counts);
    for (std::size_t c = 0; c < 8; ++c) r.presence += accuracy(train.presence[c], test.presence[c], 2) / 8, r.presence_floor += floor(test.presence[c]) / 8;
    r.center_px = PointProbe{train.centers}.distance(test.centers);
    r.center_floor_px = test.own_distance / static_cast<double>(std::max<std::size_t>(1, test.centers.n()));
    return r;
}

}  // namespace prism::shapes
