// features, preprocess: pictures to numbers, and numbers to a picture.
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

namespace {

using namespace prism;

/// The towers of a model, one or several, behind one call.
struct Eyes {
    const Vlm*                  vlm = nullptr;
    const Tower*                tower = nullptr;
    std::vector<std::string>    keys;
    std::vector<ImageTransform> transforms;
    std::vector<std::size_t>    image_sizes;
    std::size_t                 grid = 0, d = 0;

    explicit Eyes(const Model& model) {
        if (std::holds_alternative<Language>(model.parts)) throw LoadError{model.folder.string(), "is a language model alone and has no vision tower"};
        if ((tower = std::get_if<Tower>(&model.parts))) {
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
    template <Backend B, class M>
    static void run(B& be, Workspace<B>& ws, const M& model, std::span<const PixelView<B>> pixels, Mat<B> out) {
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
    void look(Cpu& cpu, Workspace<Cpu>& ws, std::span<const PixelView<Cpu>> pixels, Mat<Cpu> out) const {
        if (vlm) run<Cpu>(cpu, ws, vlm->model, pixels, out);
        else run<Cpu>(cpu, ws, tower->vit, pixels, out);
    }
};

/// Pictures that are prepared already: pixels[tower][picture].
struct Prepared {
    std::vector<std::vector<float>>          values;
    std::vector<std::vector<PixelView<Cpu>>> pictures;

    void add(const float* data, std::size_t n, std::size_t stride, std::size_t height, std::size_t width) {
        auto& views = pictures.emplace_back();
        for (std::size_t i = 0; i < n; ++i) views.push_back({data + i * stride, {1, 3, height, width}});
    }
};

/// pixel_values [n, 3, S, S] of a tower, [n, 3 n_towers, S, S] of several as OpenVLA stacks them, or one tensor
/// pixel_values.<tower> for each; a single picture may come without n.
Prepared open_pixels(const std::filesystem::path& path, const Eyes& eyes) {
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
    Prepared          prepared;
    for (std::size_t tower = 0; tower < n_towers; ++tower) {
        const TensorInfo* t = stacked ? stacked : named(eyes.keys[tower]);
        if (!t) throw LoadError{path.string(), "has no tensor 'pixel_values', nor 'pixel_values." + eyes.keys[tower] + "'"};
        const std::size_t channels = stacked ? 3 * n_towers : 3, rank = t->shape.size();
        if ((rank != 3 && rank != 4) || t->shape[rank - 3] != channels || t->elements() == 0)
            throw LoadError{path.string(), t->name, "[n, " + std::to_string(channels) + ", S, S]", to_string(t->shape)};
        const std::size_t n = rank == 4 ? t->shape[0] : 1, height = t->shape[rank - 2], width = t->shape[rank - 1];
        if (tower && n != prepared.pictures[0].size())
            throw LoadError{path.string(), t->name, std::to_string(prepared.pictures[0].size()) + " pictures, as for the tower before", std::to_string(n)};
        if (!stacked || tower == 0) prepared.values.push_back(to_floats(*t));
        prepared.add(prepared.values.back().data() + (stacked ? 3 * tower * height * width : 0), n, channels * height * width, height, width);
    }
    return prepared;
}

/// The part of a picture that a tower sees, large enough to look at.
Image seen_part(const Image& image, ImageTransform transform) {
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

}  // namespace

void run(const Common& common, const Features& args) {
    if (args.image.empty() == args.pixels.empty()) throw UsageError{"features: one of --image and --pixels is needed"};
    if (args.out.empty() && args.pca.empty()) throw UsageError{"features: --out, --pca or both are needed"};
    if (common.model.empty() && args.image_size) throw UsageError{"features: --image-size needs --model, a vision tower alone"};
    std::optional<Image> image;
    if (!args.image.empty()) image = open_picture(common, args.image);
    Cpu         cpu = open_backend(common);
    const Model model = open_model(cpu, common, Default::asks, args.image_size);
    const Eyes  eyes{model};

    Pixels<Cpu> made;  // of the picture
    Prepared    prepared;
    if (image) {
        made = Pixels<Cpu>{cpu, eyes.transforms, *image};
        for (const auto& view : made.views()) prepared.pictures.push_back({view});
    } else {
        prepared = open_pixels(args.pixels, eyes);
    }
    const std::size_t  n = prepared.pictures[0].size(), n_patches = eyes.grid * eyes.grid;
    std::vector<float> features(n * n_patches * eyes.d);
    const Cost         cost = eyes.cost();
    {
        Workspace<Cpu> ws{cpu, cost.workspace_bytes};
        const Progress bar{!common.quiet, "looking", static_cast<double>(n) * static_cast<double>(cost.flops), 1e9, "GFLOP",
                           [&cpu, before = cpu.flops_done()] { return static_cast<double>(cpu.flops_done() - before); }};
        for (std::size_t i = 0; i < n; ++i) {
            std::vector<PixelView<Cpu>> pixels;
            for (const auto& tower : prepared.pictures) pixels.push_back(tower[i]);
            eyes.look(cpu, ws, pixels, {features.data() + i * n_patches * eyes.d, {n_patches, eyes.d}});
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

void run(const Common& common, const Preprocess& args) {
    const ImageTransform transform{.stats = statistics_from_name(args.statistics), .strategy = resize_from_name(args.resize), .size = args.size};
    const Image          image = open_picture(common, args.image);
    std::vector<float>   pixels(3 * args.size * args.size);
    transform.apply(image, {pixels.data(), {3, args.size, args.size}});
    write_tensor(common, args.out, "pixel_values", {3, args.size, args.size}, pixels);
}

}  // namespace program
