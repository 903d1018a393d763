// A tower that teaches itself: of a picture that is moved, lighter or darker and full of holes, a student says what its teacher, the
// mean of the students before, sees in the whole one. Nobody says what that is called.
//
//     DistilledTrainer trainer{cpu, composition().towers[0], {.batch = 32, .steps = 1500}};
//     for (std::size_t k = 0; k < 1500; ++k) trainer.step([&](std::size_t i) { return world.scene(Split::train, k * 32 + i); });
//     share_parameters(trainer.teacher(), vlm.towers[0]);
//
// This is the half of DINOv2's objective that works on patches. What is said of one is a share of each of a number of prototypes,
// which the teacher uses equally often (Sinkhorn and Knopp's rounds), so that it cannot say the same of everything; and it is asked
// of the patches of a picture that differ most within themselves, because most of this world is background.
// Source: Zhou et al., "iBOT", ICLR 2022; Caron et al., "SwAV", NeurIPS 2020; Oquab et al., "DINOv2", 2023. Simplified.
#pragma once

#include "pretraining.hpp"
#include "scene.hpp"

#include "prism/model/random.hpp"
#include "prism/train.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

struct DistilledOptions {
    std::size_t   batch = 32, steps = 1500;
    double        rate = 1.5e-3, weight_decay = 0.05;
    std::uint64_t seed = 7;
    std::size_t   d_hidden = 192, d_common = 64, n_prototypes = 256;
    double        asked = 0.4;                                      // share of the patches that the loss is about, those with most in them
    double        holes = 0.2;                                      // share of the patches that the student does not see
    std::size_t   shift = 4;                                        // pixels that its picture is moved by at most, up and down and sideways
    double        brightness = 0.1;                                 // its contrast is that much higher or lower at most
    double        student_temperature = 0.1, teacher_temperature = 0.06;
    double        momentum = 0.99;                                  // of the teacher; it rises to 1
};

struct DistilledConfig {
    VitConfig   tower;
    std::size_t d_hidden, d_common, n_prototypes;
};

/// A tower, and what is said of the features of its patches: shares of prototypes.
template <Backend B>
struct Distilled {
    DistilledConfig config;
    Vit<B>          tower;
    Linear<B>       fc1, fc2, prototypes;  // [hidden, d], [common, hidden], [prototypes, common]

    static constexpr auto params = fields(field("tower", &Distilled::tower), field("fc1", &Distilled::fc1), field("fc2", &Distilled::fc2), field("prototypes", &Distilled::prototypes));

    explicit Distilled(const DistilledConfig& c)
        : config(c), tower(c.tower), fc1(c.tower.d_model, c.d_hidden), fc2(c.d_hidden, c.d_common), prototypes(c.d_common, c.n_prototypes, false) {}

    bool trained(std::string_view name) const { return !name.starts_with("tower.") || reaches_features(config.tower, name.substr(6)); }
};

namespace detail {

/// Rows of z of length one in u; the lengths they had.
inline std::vector<float> normalise(Mat<Cpu> z, Mat<Cpu> u) {
    std::vector<float> lengths(z.rows());
    for (std::size_t i = 0; i < z.rows(); ++i) {
        double squares = 1e-12;
        for (std::size_t j = 0; j < z.cols(); ++j) squares += static_cast<double>(z(i, j)) * static_cast<double>(z(i, j));
        lengths[i] = static_cast<float>(std::sqrt(squares));
        for (std::size_t j = 0; j < z.cols(); ++j) u(i, j) = z(i, j) / lengths[i];
    }
    return lengths;
}

/// Scores [n, k] become shares of prototypes, each row's of 1, and all prototypes are used about equally often.
inline void balance(Mat<Cpu> scores, double temperature, std::size_t rounds = 3) {
    const std::size_t   n = scores.rows(), k = scores.cols();
    std::vector<double> q(n * k), column(k);
    for (std::size_t i = 0; i < n; ++i) {
        float most = scores(i, 0);
        for (std::size_t j = 1; j < k; ++j) most = std::max(most, scores(i, j));
        for (std::size_t j = 0; j < k; ++j) q[i * k + j] = std::exp(static_cast<double>(scores(i, j) - most) / temperature);
    }
    for (std::size_t round = 0; round < rounds; ++round) {
        std::ranges::fill(column, 1e-12);
        for (std::size_t i = 0; i < n * k; ++i) column[i % k] += q[i];
        for (std::size_t i = 0; i < n; ++i) {
            double sum = 0;
            for (std::size_t j = 0; j < k; ++j) sum += q[i * k + j] /= column[j];
            for (std::size_t j = 0; j < k; ++j) q[i * k + j] /= sum;
        }
    }
    for (std::size_t i = 0; i < n * k; ++i) scores(i / k, i % k) = static_cast<float>(q[i]);
}

/// The mean over rows of -sum p log softmax(scores / temperature); scores become its gradient.
inline double soft_cross_entropy(Mat<Cpu> scores, std::span<const float> p, double temperature) {
    const std::size_t n = scores.rows(), k = scores.cols();
    const double      share = 1 / static_cast<double>(n);
    double            loss = 0;
    for (std::size_t i = 0; i < n; ++i) {
        float most = scores(i, 0);
        for (std::size_t j = 1; j < k; ++j) most = std::max(most, scores(i, j));
        double sum = 0;
        for (std::size_t j = 0; j < k; ++j) sum += std::exp(static_cast<double>(scores(i, j) - most) / temperature);
        const double log_sum = std::log(sum);
        for (std::size_t j = 0; j < k; ++j) {
            const double said = static_cast<double>(scores(i, j) - most) / temperature - log_sum, wanted = static_cast<double>(p[i * k + j]);
            loss -= share * wanted * said;
            scores(i, j) = static_cast<float>(share * (std::exp(said) - wanted) / temperature);
        }
    }
    return loss;
}

}  // namespace detail

/// The scores of prototypes [n rows, n_prototypes] for the patches `rows` of pixels: the teacher's part.
template <Backend B>
void distilled_scores(B& be, Workspace<B>& ws, const Distilled<B>& m, PixelView<B> pixels, std::span<const std::int32_t> rows, Mat<B> scores) {
    auto   scope = ws.scope();
    Mat<B> features = ws.mat(pixels.extent(0) * m.tower.n_patches(), m.tower.d_model()), some = ws.mat(rows.size(), m.tower.d_model());
    Mat<B> h = ws.mat(rows.size(), m.config.d_hidden), z = ws.mat(rows.size(), m.config.d_common), u = ws.like(z);
    m.tower.forward(be, ws, pixels, features);
    ops::gather<B>(be, prism::detail::as_weight<B>(features), rows, some);
    m.fc1.forward(be, some, h, Activation::gelu_erf);
    m.fc2.forward(be, h, z);
    if constexpr (B::has_numbers) detail::normalise(z, u);
    m.prototypes.forward(be, u, scores);
}

/// The student's loss, of what it says of the patches `rows` of its pixels where the teacher says `wanted` [n rows, n_prototypes].
/// Gradients are added to `grads`, none where it is null.
template <TrainingBackend B>
double distilled_pass(B& be, Workspace<B>& ws, const Distilled<B>& m, PixelView<B> pixels, std::span<const std::int32_t> rows, std::span<const float> wanted, double temperature,
                      Tape<B>& tape, Distilled<B>* grads) {
    auto          scope = ws.scope();
    const Keep<B> kept{tape};
    Mat<B>        features = ws.mat(pixels.extent(0) * m.tower.n_patches(), m.tower.d_model()), some = ws.mat(rows.size(), m.tower.d_model());
    Mat<B>        h = ws.mat(rows.size(), m.config.d_hidden), a = ws.like(h), z = ws.mat(rows.size(), m.config.d_common), u = ws.like(z), scores = ws.mat(rows.size(), m.config.n_prototypes);
    m.tower.forward(be, ws, pixels, features, kept);
    ops::gather<B>(be, prism::detail::as_weight<B>(features), rows, some);
    m.fc1.forward(be, some, h);
    ops::copy<B>(be, h, a);
    ops::activate<B>(be, Activation::gelu_erf, a);
    m.fc2.forward(be, a, z);
    std::vector<float> lengths;
    if constexpr (B::has_numbers) lengths = detail::normalise(z, u);
    m.prototypes.forward(be, u, scores);
    double loss = 0;
    if constexpr (B::has_numbers) loss = detail::soft_cross_entropy(scores, wanted, temperature);
    if (!grads) return loss;

    Mat<B> du = ws.like(u), dh = ws.like(h), d_some = ws.like(some), d = ws.like(features);
    backward(be, m.prototypes, In<B>(u), In<B>(scores), du, &grads->prototypes);
    if constexpr (B::has_numbers)
        for (std::size_t i = 0; i < du.rows(); ++i) {  // through the length: what points along u has no effect
            float along = 0;
            for (std::size_t j = 0; j < du.cols(); ++j) along += u(i, j) * du(i, j);
            for (std::size_t j = 0; j < du.cols(); ++j) du(i, j) = (du(i, j) - along * u(i, j)) / lengths[i];
        }
    backward(be, m.fc2, In<B>(a), In<B>(du), dh, &grads->fc2);
    ops::activate_backward<B>(be, Activation::gelu_erf, h, dh);
    backward(be, m.fc1, In<B>(some), In<B>(dh), d_some, &grads->fc1);
    ops::clear<B>(be, d);
    ops::scatter_add<B>(be, rows, d_some, d);
    backward(be, ws, m.tower, kept, pixels, In<B>(d), &grads->tower);
    return loss;
}

class DistilledTrainer {
public:
    DistilledTrainer(Cpu& be, const TowerConfig& tower, const DistilledOptions& options)
        : be_(&be), options_(options), pictures_({tower.transform}), student_(config(tower.vit, options)), teacher_(student_.config), grads_(student_.config),
          optimizer_((randomise(be, student_, {.seed = options.seed, .spread = 0.06f}), be), student_, [this](std::string_view name) { return student_.trained(name); },
                     {.lr = options.rate, .beta2 = 0.95, .weight_decay = options.weight_decay, .total_steps = options.steps}),
          mean_(be, optimizer_.layout()), tape_({.replay = false}), ws_(be, workspace_bytes()) {
        copy_parameters(be, student_, teacher_);
        mean_.adopt(be, teacher_);
        optimizer_.gradients().bind(grads_);
    }
    DistilledTrainer(const DistilledTrainer&) = delete;
    DistilledTrainer& operator=(const DistilledTrainer&) = delete;

    /// The mean loss of as many scenes as a batch has: scene(i) is asked for 0 ... batch - 1, on several threads.
    template <class SceneOf>
    double step(SceneOf&& scene) {
        pictures_.draw(*be_, options_.batch, scene);
        const std::uint64_t       k = optimizer_.steps();
        std::vector<std::int32_t> rows = another_view(k);
        const std::size_t         n_prototypes = options_.n_prototypes;
        std::vector<float>        wanted(rows.size() * n_prototypes);
        const Mat<Cpu>            scores{wanted.data(), {rows.size(), n_prototypes}};
        distilled_scores<Cpu>(*be_, ws_, teacher_, pictures_.view(), rows, scores);
        detail::balance(scores, options_.teacher_temperature);
        const PixelView<Cpu> view{view_.data(), pictures_.view().shape()};
        tape_.restart();
        const double loss = distilled_pass<Cpu>(*be_, ws_, student_, view, rows, wanted, options_.student_temperature, tape_, &grads_);
        optimizer_.step(*be_);
        follow(k);
        return loss;
    }

    /// What is worth keeping: the mean of the students.
    Vit<Cpu>&              teacher() { return teacher_.tower; }
    std::vector<NamedSpan> state() {
        auto all = whole_state(optimizer_);
        all.push_back({"teacher", {mean_.layout().size}, mean_.values().span()});
        return all;
    }
    void set_steps(std::uint64_t n) { optimizer_.set_steps(n); }

private:
    static DistilledConfig config(const VitConfig& tower, const DistilledOptions& o) { return {tower, o.d_hidden, o.d_common, o.n_prototypes}; }
    std::size_t            n_asked() const { return std::max<std::size_t>(1, static_cast<std::size_t>(options_.asked * static_cast<double>(student_.tower.n_patches()))); }

    /// Fills `view_` with the student's pictures, and returns which patches of the batch are asked for, as many of each picture.
    std::vector<std::int32_t> another_view(std::uint64_t step) {
        const auto                view = pictures_.view();
        const std::size_t         n = view.extent(0), side = view.extent(2), grid = student_.config.tower.grid(), patch = side / grid, n_patches = grid * grid, n_rows = n_asked();
        std::vector<std::int32_t> rows(n * n_rows);
        view_.resize(n * view.stride(0));
        be_->parallel_for(n, 1, [&](std::size_t i, std::size_t) {
            std::uint64_t      at = 0;
            const auto         random = [&](std::size_t below) { return static_cast<std::size_t>(prism::detail::random_bits(options_.seed * 1000003 + step * 4099 + i, at++) >> 33) % below; };
            const float* const from = view.data() + i * view.stride(0);
            float* const       to = view_.data() + i * view.stride(0);
            const auto         factor = static_cast<float>(1 + options_.brightness * (static_cast<double>(random(2001)) / 1000 - 1));
            const auto         moved = [&, dx = random(2 * options_.shift + 1), dy = random(2 * options_.shift + 1)](std::size_t y, std::size_t x) {  // edges are repeated
                const auto inside = [&](std::size_t p) { return std::clamp(p, options_.shift, side - 1 + options_.shift) - options_.shift; };
                return inside(y + dy) * side + inside(x + dx);
            };
            for (std::size_t c = 0; c < 3; ++c)
                for (std::size_t y = 0; y < side; ++y)
                    for (std::size_t x = 0; x < side; ++x) to[(c * side + y) * side + x] = factor * from[c * side * side + moved(y, x)];

            std::vector<std::pair<float, std::size_t>> patches;  // by how much their pixels differ; among equals by chance
            for (std::size_t p = 0; p < n_patches; ++p) {
                float differ = 0;
                for (std::size_t c = 0; c < 3; ++c) {
                    const float* const first = from + (c * side + p / grid * patch) * side + p % grid * patch;
                    float              least = *first, most = *first;
                    for (std::size_t y = 0; y < patch; ++y) {
                        const auto [low, high] = std::minmax_element(first + y * side, first + y * side + patch);
                        least = std::min(least, *low), most = std::max(most, *high);
                    }
                    differ += most - least;
                }
                patches.push_back({-differ - 1e-6f * static_cast<float>(random(1000)), p});
                if (random(1000) >= static_cast<std::size_t>(1000 * options_.holes)) continue;
                for (std::size_t c = 0; c < 3; ++c)
                    for (std::size_t y = 0; y < patch; ++y) std::fill_n(to + (c * side + p / grid * patch + y) * side + p % grid * patch, patch, 0.0f);
            }
            std::ranges::sort(patches);
            for (std::size_t k = 0; k < n_rows; ++k) rows[i * n_rows + k] = static_cast<std::int32_t>(i * n_patches + patches[k].second);
        });
        return rows;
    }
    /// The teacher moves towards the student, less and less.
    void follow(std::uint64_t step) {
        const double done = std::min(1.0, static_cast<double>(step) / static_cast<double>(options_.steps));
        const auto   part = static_cast<float>((1 - options_.momentum) * (std::cos(3.14159265358979 * done) + 1) / 2);
        const auto   from = optimizer_.parameters().values().span();
        const auto   to = mean_.values().span();
        for (std::size_t i = 0; i < to.size(); ++i) to[i] += part * (from[i] - to[i]);
    }
    std::size_t workspace_bytes() const {
        const std::size_t               side = student_.config.tower.image_size, n = options_.batch;
        const std::vector<std::int32_t> rows(n * n_asked());
        Distilled<Dry>                  twin{student_.config}, grads{student_.config};
        Tape<Dry>                       tape{{.replay = false}};
        return dry_run([&](Dry& be, Workspace<Dry>& ws) { distilled_pass<Dry>(be, ws, twin, {nullptr, {n, 3, side, side}}, rows, {}, 1, tape, &grads); }).workspace_bytes;
    }

    Cpu*               be_;
    DistilledOptions   options_;
    Pictures           pictures_;
    Distilled<Cpu>     student_, teacher_, grads_;
    Optimizer<Cpu>     optimizer_;
    Arena<Cpu>         mean_;
    Tape<Cpu>          tape_;
    std::vector<float> view_;
    Workspace<Cpu>     ws_;
};

}  // namespace prism::shapes
