// A tower that is told what is where: for each patch of a picture the looks and the box of the object there, whether an
// object's middle lies in it, and the character that is written there; and, where that is asked for, how many objects look like
// the one there.
//
//     SupervisedTrainer trainer{cpu, composition().towers[0], {.batch = 64, .steps = 1500}};
//     for (std::size_t k = 0; k < 1500; ++k) trainer.step(examples_of(k));
//     vlm.towers[0] = std::move(trainer.tower());
//
// What is trained is what a language model will read: the features of the second-to-last block. The linear head that reads
// them here is thrown away.
#pragma once

#include "phrase.hpp"
#include "pretraining.hpp"

#include "prism/model/prismatic.hpp"
#include "prism/model/random.hpp"
#include "prism/train.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prism::shapes {

/// What a supervised tower says of a patch, in columns of its head.
enum class Patch : std::uint8_t { color, shape, size, texture, middles, letter, blurred, alike };
/// What objects may have in common with the one at a patch, to be counted: nothing, one property, two. No question names more.
inline constexpr std::array<unsigned, 11> alike_in{0, has_shape, has_color, has_size, has_texture, has_shape | has_color, has_shape | has_size,
                                                   has_shape | has_texture, has_color | has_size, has_color | has_texture, has_size | has_texture};
inline constexpr std::size_t              most_alike = 7;  // as many, or more
inline constexpr std::size_t              n_looks = static_cast<std::size_t>(Patch::alike), n_patch_classes = n_looks + alike_in.size();
inline constexpr std::array<std::size_t, n_patch_classes> patch_classes = [] {
    std::array<std::size_t, n_patch_classes> classes{9, 6, 2, 2, 3, label_letters.size() + 1, 2};
    for (std::size_t k = n_looks; k < n_patch_classes; ++k) classes[k] = most_alike + 1;
    return classes;
}();
/// The place among the classes of the number of objects that have these properties in common.
constexpr std::size_t alike_class(unsigned properties) {
    std::size_t k = 0;
    while (alike_in[k] != properties) ++k;
    return n_looks + k;
}
inline constexpr std::array<std::string_view, n_patch_classes> patch_class_names{
    "color", "shape", "size", "texture", "middles", "letter", "blurred", "how many", "of its shape", "of its color", "of its size", "of its texture",
    "shape and color", "shape and size", "shape and texture", "color and size", "color and texture", "size and texture"};
/// And where the edges of the object's box are, and the middle of the patch itself: in patches from the middle of the picture.
/// Without the second a tower forgets where a patch is, and nothing behind it knows left from right.
inline constexpr std::size_t n_edges = 4, n_places = n_edges + 2;

/// The truth about the patches of a picture that is squeezed to a square of rows x columns.
struct PatchTruth {
    std::array<std::vector<std::int32_t>, n_patch_classes> labels;  // ignored_label where a question has no answer
    std::vector<std::array<float, n_edges>>                edges;   // of patches with a color
};

/// The last class of color is "none", that of letter as well. An object belongs to a patch of which its box covers at least
/// an eighth, more than any other's; patches that are hardly touched are not asked about. `alike`: counts are asked for, too.
inline void add_truth(const Scene& scene, std::size_t rows, std::size_t columns, PatchTruth& to, bool alike = false) {
    const auto none = static_cast<std::int32_t>(color_names.size()), no_letter = static_cast<std::int32_t>(label_letters.size());
    const int  width = scene.width * px, height = scene.height * px;
    const auto at = [](std::size_t i, std::size_t n, int side) { return static_cast<int>(i) * side / static_cast<int>(n); };
    const auto inside = [](const Box& box, Point p) { return p.x >= box.x1 && p.x < box.x2 && p.y >= box.y1 && p.y < box.y2; };
    std::vector<std::pair<char, Box>> letters;
    if (scene.label)
        for (int x = scene.label->at.x; const char c : scene.label->text) letters.push_back({c, {x, scene.label->at.y, x + 12 * px, scene.label->at.y + 14 * px}}), x += 12 * px;
    for (const Node& n : scene.nodes) letters.push_back({n.letter, {n.center.x - 6 * px, n.center.y - 7 * px, n.center.x + 6 * px, n.center.y + 7 * px}});

    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t column = 0; column < columns; ++column) {
            const Box                               patch{at(column, columns, width), at(row, rows, height), at(column + 1, columns, width), at(row + 1, rows, height)};
            std::array<std::int32_t, n_patch_classes> label;
            label.fill(ignored_label);
            const auto    set = [&](Patch what, auto value) { label[static_cast<std::size_t>(what)] = static_cast<std::int32_t>(value); };
            const Object* found = nullptr;
            int           most = 0, middles = 0;
            for (const Object& o : scene.objects) {
                const int shared = overlap_area(o.box(), patch);
                middles += inside(patch, o.center);
                if (shared >= most && shared > 0) most = shared, found = &o;  // of two, the one in front
            }
            set(Patch::blurred, scene.damage == Damage::blurred);
            if (scene.damage != Damage::blurred) {
                set(Patch::middles, std::min(middles, 2));
                set(Patch::letter, no_letter);
                for (int best = patch.area() / 4; const auto& [letter, box] : letters)
                    if (const int shared = overlap_area(box, patch); shared > best) best = shared, set(Patch::letter, label_letters.find(letter));
                if (!found) set(Patch::color, none);
                else if (most * 8 >= patch.area()) {
                    set(Patch::color, found->color), set(Patch::size, found->size), set(Patch::texture, found->texture);
                    if (!found->cut) set(Patch::shape, found->shape);
                    if (alike && scene.damage == Damage::none)
                        for (std::size_t k = 0; k < alike_in.size(); ++k)
                            label[n_looks + k] = static_cast<std::int32_t>(std::min(most_alike, looks_of(*found, alike_in[k]).count(scene)));
                }
            }
            for (std::size_t k = 0; k < n_patch_classes; ++k) to.labels[k].push_back(label[k]);
            std::array<float, n_edges> edges{};
            if (found) {
                const Box  box = found->box();
                const auto patches = [](int a, int side, std::size_t n) { return (static_cast<float>(a) / static_cast<float>(side) - 0.5f) * static_cast<float>(n); };
                edges = {patches(box.x1, width, columns), patches(box.y1, height, rows), patches(box.x2, width, columns), patches(box.y2, height, rows)};
            }
            to.edges.push_back(edges);
        }
}

/// Of several pictures, one behind another; at least one.
inline PatchTruth joined(std::vector<PatchTruth> truths) {
    PatchTruth all = std::move(truths[0]);
    for (std::size_t i = 1; i < truths.size(); ++i) {
        for (std::size_t k = 0; k < n_patch_classes; ++k) all.labels[k].insert(all.labels[k].end(), truths[i].labels[k].begin(), truths[i].labels[k].end());
        all.edges.insert(all.edges.end(), truths[i].edges.begin(), truths[i].edges.end());
    }
    return all;
}

/// Draws a batch, and returns the truth about it.
template <class SceneOf>
PatchTruth draw_with_truth(Cpu& be, Pictures& pictures, std::size_t batch, std::size_t grid, SceneOf&& scene, bool alike = false) {
    std::vector<PatchTruth> truths(batch);
    pictures.draw(be, batch, [&](std::size_t i) {
        Scene s = scene(i);
        add_truth(s, grid, grid, truths[i], alike);
        return s;
    });
    return joined(std::move(truths));
}

template <Backend B>
struct Supervised {
    VitConfig   config;
    std::size_t n_asked;  // of the classes: all, or looks alone
    Vit<B>      tower;
    Linear<B>   head;  // [classes of all questions and places, d]

    static constexpr auto params = fields(field("tower", &Supervised::tower), field("head", &Supervised::head));

    explicit Supervised(const VitConfig& c, bool alike = false) : config(c), n_asked(alike ? n_patch_classes : n_looks), tower(c), head(c.d_model, n_outputs()) {}

    std::size_t n_outputs() const { return std::accumulate(patch_classes.begin(), patch_classes.begin() + n_asked, n_places); }
    /// Whether the loss depends on the parameter of this name.
    bool trained(std::string_view name) const { return name.starts_with("head.") || reaches_features(config, name.substr(6)); }
};

/// Whether an object that is named lies in patch i.
inline bool has_box(const PatchTruth& truth, std::size_t i) { return truth.labels[0][i] >= 0 && truth.labels[0][i] < static_cast<std::int32_t>(color_names.size()); }

/// The mean of Huber's loss (quadratic up to one patch) over edges and over places, said [n, n_places] of patches in grids of
/// grid x grid. Its gradient takes the place of what is said.
inline double place_loss(const PatchTruth& truth, std::size_t grid, Mat<Cpu> said) {
    const std::size_t n = said.rows();
    std::size_t       n_boxes = 0;
    for (std::size_t i = 0; i < n; ++i) n_boxes += has_box(truth, i);
    const float edge_share = 1 / static_cast<float>(std::max<std::size_t>(1, n_edges * n_boxes)), place_share = 1 / static_cast<float>(2 * n);
    const auto  middle = [&](std::size_t at) { return static_cast<float>(at) + 0.5f - static_cast<float>(grid) / 2; };
    double      loss = 0;
    const auto  huber = [&](float& out, float wanted, float share) {
        const float off = out - wanted, size = std::abs(off);
        loss += static_cast<double>(share * (size < 1 ? off * off / 2 : size - 0.5f));
        out = share * std::clamp(off, -1.0f, 1.0f);
    };
    for (std::size_t i = 0; i < n; ++i) {
        float* const out = said.row(i).data();
        for (std::size_t e = 0; e < n_edges; ++e) huber(out[e], truth.edges[i][e], has_box(truth, i) ? edge_share : 0);
        huber(out[n_edges], middle(i % (grid * grid) % grid), place_share), huber(out[n_edges + 1], middle(i % (grid * grid) / grid), place_share);
    }
    return loss;
}

/// The loss: the sum over questions of the mean of -log p, and that of places.
/// Gradients go to `grads`, or nowhere where it is null; `right` gets the share of answers that were right.
template <TrainingBackend B>
double supervised_pass(B& be, Workspace<B>& ws, const Supervised<B>& m, PixelView<B> pixels, const PatchTruth& truth, Tape<B>& tape, Supervised<B>* grads,
                       std::array<double, n_patch_classes>* right = nullptr) {
    auto              scope = ws.scope();
    const Keep<B>     kept{tape};
    const std::size_t n = pixels.extent(0) * m.tower.n_patches();
    Mat<B>            features = ws.mat(n, m.tower.d_model()), answers = ws.mat(n, m.head.d_out());
    m.tower.forward(be, ws, pixels, features, kept);
    m.head.forward(be, features, answers);
    double      loss = 0;
    std::size_t first = 0;
    for (std::size_t k = 0; k < m.n_asked; first += patch_classes[k++]) {
        const Mat<B> some = answers.cols(first, patch_classes[k]);
        double       asked = 0;
        if constexpr (B::has_numbers) {
            const auto& labels = truth.labels[k];
            std::size_t hits = 0, questions = 0;
            for (std::size_t i = 0; i < n; ++i) {
                if (labels[i] == ignored_label) continue;
                const auto row = some.row(i);
                const auto best = std::max_element(row.data(), row.data() + row.size()) - row.data();
                ++questions, hits += best == labels[i];
            }
            asked = static_cast<double>(std::max<std::size_t>(1, questions));
            if (right) (*right)[k] = static_cast<double>(hits) / asked;
        }
        loss += ops::cross_entropy<B>(be, some, truth.labels[k], static_cast<float>(1 / std::max(1.0, asked))) / std::max(1.0, asked);
    }
    if constexpr (B::has_numbers) loss += place_loss(truth, m.config.grid(), answers.cols(first, n_places));
    if (!grads) return loss;
    Mat<B> d = ws.like(features);
    backward(be, m.head, features, answers, d, &grads->head);
    backward(be, ws, m.tower, kept, pixels, In<B>(d), &grads->tower);
    return loss;
}

/// What a tower learns from, and for how long.
struct TowerOptions {
    std::size_t   batch = 64, steps = 1500;
    double        rate = 1.5e-3, weight_decay = 0.05;
    std::uint64_t seed = 7;
    bool          alike = false;  // whether a supervised tower counts
};

class SupervisedTrainer {
public:
    /// Begins with the parameters of `from`, where one is given.
    SupervisedTrainer(Cpu& be, const TowerConfig& tower, TowerOptions options, const Vit<Cpu>* from = nullptr)
        : be_(&be), options_(options), pictures_({tower.transform}), model_(tower.vit, options.alike), grads_(tower.vit, options.alike),
          optimizer_((begin(be, from), be), model_, [this](std::string_view name) { return model_.trained(name); },
                     {.lr = options.rate, .beta2 = 0.95, .weight_decay = options.weight_decay, .total_steps = options.steps}),
          tape_({.replay = false}), ws_(be, workspace_bytes()) {
        optimizer_.gradients().bind(grads_);
    }

    /// The mean loss of as many scenes as a batch has: scene(i) is asked for 0 ... batch - 1, on several threads.
    template <class SceneOf>
    double step(SceneOf&& scene) {
        const double loss = look(scene, &grads_);
        optimizer_.step(*be_);
        return loss;
    }
    /// The same without learning from them; see right().
    template <class SceneOf>
    double look(SceneOf&& scene, Supervised<Cpu>* grads = nullptr) {
        const PatchTruth truth = draw_with_truth(*be_, pictures_, options_.batch, model_.config.grid(), scene, options_.alike);
        tape_.restart();
        return supervised_pass<Cpu>(*be_, ws_, model_, pictures_.view(), truth, tape_, grads, &right_);
    }

    /// Of the last batch: how many answers were right, of each question that is asked.
    std::span<const double> right() const { return std::span(right_).first(model_.n_asked); }
    Vit<Cpu>&              tower() { return model_.tower; }
    std::vector<NamedSpan> state() { return whole_state(optimizer_); }
    void                   set_steps(std::uint64_t n) { optimizer_.set_steps(n); }

private:
    void begin(Cpu& be, const Vit<Cpu>* from) {
        randomise(be, model_, {.seed = options_.seed, .spread = 0.06f});
        if (from) share_parameters(*from, model_.tower);  // the optimiser makes copies
    }
    std::size_t workspace_bytes() const {
        const std::size_t side = model_.config.image_size, grid = model_.config.grid();
        PatchTruth        truth;
        for (auto& labels : truth.labels) labels.assign(options_.batch * grid * grid, ignored_label);
        Supervised<Dry> twin{model_.config, options_.alike}, grads{model_.config, options_.alike};
        Tape<Dry>       tape{{.replay = false}};
        return dry_run([&](Dry& be, Workspace<Dry>& ws) { supervised_pass<Dry>(be, ws, twin, {nullptr, {options_.batch, 3, side, side}}, truth, tape, &grads); }).workspace_bytes;
    }

    Cpu*                                be_;
    TowerOptions                        options_;
    Pictures                            pictures_;
    Supervised<Cpu>                     model_, grads_;
    Optimizer<Cpu>                      optimizer_;
    Tape<Cpu>                           tape_;
    Workspace<Cpu>                      ws_;
    std::array<double, n_patch_classes> right_{};
};

}  // namespace prism::shapes
