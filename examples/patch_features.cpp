// Run: patch_features tests/data/reference/vision/dino tests/data/reference/images/photo-128x190-q60.jpg build/patch_features.png
// What one vision tower makes of a picture: its patch features as colours, alike where the tower sees alike.
#include <prism/prism.hpp>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
    if (argc != 4) return 2;  // a tower, a picture, and a file for the outcome
    constexpr std::size_t image_size = 448;  // px; the tower's position table is resampled to this

    prism::Cpu         cpu;
    const auto         tower = prism::tower_from_pretrained(cpu, argv[1], image_size);
    const prism::Image picture = prism::read_image(argv[2]);
    const auto&        vit = tower.vit;

    const prism::Pixels<prism::Cpu> pixels{cpu, {&tower.transform, 1}, picture};
    std::vector<float>              values(vit.n_patches() * vit.d_model());
    const prism::Mat<prism::Cpu>    features{values.data(), {vit.n_patches(), vit.d_model()}};

    // The same code on the dry backend says how much scratch the forward pass takes.
    const auto cost = prism::dry_run([&, twin = prism::dry_twin(vit)](prism::Dry& be, prism::Workspace<prism::Dry>& ws) {
        twin.forward(be, ws, prism::dry_view(pixels.views()[0]), prism::dry_view(features));
    });
    prism::Workspace<prism::Cpu> ws{cpu, cost.workspace_bytes};
    vit.forward(cpu, ws, pixels.views()[0], features);

    const auto pca = prism::principal_components(features, 3);
    const auto share = (pca.variances[0] + pca.variances[1] + pca.variances[2]) / pca.total_variance;
    std::printf("%zu x %zu patches with %zu features; three components hold %.0f %% of their variance\n", vit.config.grid(),
                vit.config.grid(), vit.d_model(), 100 * share);

    const auto colours = prism::feature_colours(features, vit.config.grid());
    prism::write_png(argv[3], prism::lay_over(colours, prism::resize_bicubic(picture, {3 * picture.height(), 3 * picture.width()})));
}
