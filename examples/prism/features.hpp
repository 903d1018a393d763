// features: pictures to numbers, and numbers to a picture, on any backend.
#pragma once

#include "files.hpp"
#include "models.hpp"
#include "progress.hpp"

#include "prism/image/write.hpp"
#include "prism/model/feature_picture.hpp"
#include "prism/model/pixels.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

namespace program {

using namespace prism;

/// The towers of a model, one or several, behind one call.
template <Backend B>
struct Eyes {
    const Vlm<B>*               vlm = nullptr;
    const Tower<B>*             tower = nullptr;
    std::vector<std::string>    keys;
    std::vector<ImageTransform> transforms;
    std::vector<std::size_t>    image_sizes;
    std::size_t                 grid = 0, d = 0;

    explicit Eyes(const Model<B>& model) {
        if (std::holds_alternative<Language<B>>(model.parts)) throw LoadError{model.folder.string(), "is a language model alone and has no vision tower"};
        if ((tower = std::get_if<Tower<B>>(&model.parts))) {
            add("", tower->transform, tower->vit.config);
            return;
        }
        vlm = &model.vlm();
        for (const auto& t : vlm->model.config.towers) add(t.key, t.transform, t.vit);
    }
    void add(const std::string& key, const ImageTransform& transform, const VitConfig& vit) {
        keys.push_back(key), transforms.push_back(transform), image_sizes.push_back(vit.image_size);
        grid = vit.grid(), d += vit.d_model;
    }

    /// features [grid grid, d] of one picture, pixels[tower] [1, 3, S, S].
    template <Backend On, class M>
    static void run(On& be, Workspace<On>& ws, const M& model, std::span<const PixelView<On>> pixels, Mat<On> out) {
        if constexpr (requires { model.features(be, ws, pixels, out); }) model.features(be, ws, pixels, out);
        else model.forward(be, ws, pixels[0], out);
    }
    template <class M>
    Cost cost(const M& model) const {
        return dry_run([&, twin = dry_twin(model)](Dry& be, Workspace<Dry>& ws) {
            std::vector<PixelView<Dry>> pixels;
            for (std::size_t size : image_sizes) pixels.push_back({nullptr, {1, 3, size, size}});
            run<Dry>(be, ws, twin, pixels, {nullptr, {grid * grid, d}});
        });
    }
    Cost cost() const { return vlm ? cost(vlm->model) : cost(tower->vit); }
    void look(B& be, Workspace<B>& ws, std::span<const PixelView<B>> pixels, Mat<B> out) const {
        if (vlm) run<B>(be, ws, vlm->model, pixels, out);
        else run<B>(be, ws, tower->vit, pixels, out);
    }
};

/// Pictures that are prepared already, where the backend reads them: pictures[tower][picture].
template <Backend B>
struct Prepared {
    std::vector<Buffer<typename B::space>> values;
    std::vector<std::vector<PixelView<B>>> pictures;

    void upload(B& be, std::span<const float> from) {
        values.push_back(be.allocate(from.size_bytes()));
        be.upload(from, {values.back().template as<float>(), {from.size()}});
    }
    /// n pictures of a tower, the first at `at` of the values that were uploaded last, each `stride` values after another.
    void add(std::size_t at, std::size_t n, std::size_t stride, std::size_t height, std::size_t width) {
        auto& views = pictures.emplace_back();
        for (std::size_t i = 0; i < n; ++i) views.push_back({values.back().template as<const float>() + at + i * stride, {1, 3, height, width}});
    }
};

/// pixel_values [n, 3, S, S] of a tower, [n, 3 n_towers, S, S] of several as OpenVLA stacks them, or one tensor
/// pixel_values.<tower> for each; a single picture may come without n.
template <Backend B>
Prepared<B> open_pixels(B& be, const std::filesystem::path& path, const Eyes<B>& eyes) {
    const Checkpoint  file{path.string(), open_tensors(path)};
    const std::size_t n_towers = eyes.keys.size();
    const auto        named = [&](const std::string& key) -> const TensorInfo* {
        const std::string name = "pixel_values" + (key.empty() ? key : "." + key);
        if (const TensorInfo* t = file.find(name)) return t;
        for (const TensorInfo& t : file.tensors())  // a variant of the tower, such as clip-gelu
            if (t.name.starts_with(name + (key.empty() ? "." : "-"))) return &t;
        return nullptr;
    };
    const TensorInfo* stacked = file.find("pixel_values");
    Prepared<B>       prepared;
    for (std::size_t tower = 0; tower < n_towers; ++tower) {
        const TensorInfo* t = stacked ? stacked : named(eyes.keys[tower]);
        if (!t) throw LoadError{path.string(), "has no tensor 'pixel_values', nor 'pixel_values." + eyes.keys[tower] + "'"};
        const std::size_t channels = stacked ? 3 * n_towers : 3, rank = t->shape.size();
        if ((rank != 3 && rank != 4) || t->shape[rank - 3] != channels || t->elements() == 0)
            throw LoadError{path.string(), t->name, "[n, " + std::to_string(channels) + ", S, S]", to_string(t->shape)};
        const std::size_t n = rank == 4 ? t->shape[0] : 1, height = t->shape[rank - 2], width = t->shape[rank - 1];
        if (tower && n != prepared.pictures[0].size())
            throw LoadError{path.string(), t->name, std::to_string(prepared.pictures[0].size()) + " pictures, as for the tower before", std::to_string(n)};
        if (!stacked || tower == 0) prepared.upload(be, to_floats(*t));
        prepared.add(stacked ? 3 * tower * height * width : 0, n, channels * height * width, height, width);
    }
    return prepared;
}

/// The part of a picture that a tower sees, large enough to look at.
inline Image seen_part(const Image& image, ImageTransform transform) {
    constexpr std::size_t least = 448;
    if (transform.strategy == Resize::naive && !transform.resize_to) {  // all of it, and its own shape
        const std::size_t longer = std::max(image.height(), image.width()), times = (least + longer - 1) / longer;
        return times > 1 ? resize_bicubic(image, {times * image.height(), times * image.width()}) : image;
    }
    const std::size_t times = (least + transform.size - 1) / transform.size;
    if (transform.resize_to) transform.resize_to = times * *transform.resize_to;
    transform.size *= times;
    return transform.square(image);
}

template <Backend B>
void run_on(const Common& common, const Features& args) {
    if (args.image.empty() == args.pixels.empty()) throw UsageError{"features: one of --image and --pixels is needed"};
    if (args.out.empty() && args.pca.empty()) throw UsageError{"features: --out, --pca or both are needed"};
    expect_one_output(common, args.out);
    expect_png("--pca", args.pca);
    if (common.model.empty() && args.image_size) throw UsageError{"features: --image-size needs --model, a vision tower alone"};
    std::optional<Image> image;
    if (!args.image.empty()) image = open_picture(common, args.image);
    B          be = open_backend<B>(common);
    const auto model = open_model(be, common, Default::asks, args.image_size);
    const Eyes eyes{model};

    Pixels<B>   made;  // of the picture
    Prepared<B> prepared;
    if (image) {
        made = Pixels<B>{be, eyes.transforms, *image};
        for (const auto& view : made.views()) prepared.pictures.push_back({view});
    } else {
        prepared = open_pixels(be, args.pixels, eyes);
    }
    const std::size_t  n = prepared.pictures[0].size(), n_patches = eyes.grid * eyes.grid, n_values = n_patches * eyes.d;
    std::vector<float> features(n * n_values);
    const Cost         cost = eyes.cost();
    {
        Workspace<B>   ws{be, cost.workspace_bytes};
        const auto     seen = be.allocate(n_values * sizeof(float));
        const Progress bar{!common.quiet, "looking", static_cast<double>(n) * static_cast<double>(cost.flops), 1e9, "GFLOP", operations_of(be)};
        for (std::size_t i = 0; i < n; ++i) {
            std::vector<PixelView<B>> pixels;
            for (const auto& tower : prepared.pictures) pixels.push_back(tower[i]);
            eyes.look(be, ws, pixels, {seen.template as<float>(), {n_patches, eyes.d}});
            be.download(Vec<B, const float>{seen.template as<const float>(), {n_values}}, std::span(features).subspan(i * n_values, n_values));
            be.wait();
        }
    }
    if (!args.pca.empty()) {
        const Image colours = feature_colours({features.data(), {n_patches, eyes.d}}, eyes.grid);
        write_png(args.pca, lay_over(colours, seen_part(*image, eyes.transforms[0])));
    }
    const std::vector<std::size_t> shape{n, n_patches, eyes.d};
    if (!args.out.empty()) write_tensor(common, args.out, "patch_features", shape, features);
    else if (common.json) print({{"shape", shape}});
}

}  // namespace program
