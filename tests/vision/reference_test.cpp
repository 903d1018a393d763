// Vision towers against timm: every folder vision/<kind> of the reference cases.
#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/model/pretrained.hpp"
#include "support/cases.hpp"
#include "support/tensors.hpp"

using namespace prism;
using namespace prism::test;

namespace {

struct Run {
    std::vector<float> features, embedded, tokens;
};

Run run(Cpu& be, const Vit<Cpu>& vit, const std::vector<float>& pixels, std::size_t n) {
    const VitConfig&     c = vit.config;
    const PixelView<Cpu> view{pixels.data(), {n, 3, c.image_size, c.image_size}};
    const auto           bytes = dry_run([&, twin = dry_twin(vit)](Dry& dry, Workspace<Dry>& ws) {
                           twin.forward(dry, ws, dry_view(view), {nullptr, {n * c.n_patches(), c.d_model}});
                       }).workspace_bytes;
    Workspace<Cpu>       ws{be, bytes};
    const std::size_t    n_values = n * c.n_tokens() * c.d_model;
    Run                  r{std::vector<float>(n * c.n_patches() * c.d_model), std::vector<float>(n_values), std::vector<float>(n_values)};
    vit.embed(be, ws, view, {r.embedded.data(), {n * c.n_tokens(), c.d_model}});
    vit.forward(be, ws, view, {r.features.data(), {n * c.n_patches(), c.d_model}});
    CHECK(ws.peak_bytes() == bytes);
    ws = Workspace<Cpu>{be, 2 * bytes};  // the last block, too
    vit.tokens(be, ws, view, {r.tokens.data(), {n * c.n_tokens(), c.d_model}});
    return r;
}

}  // namespace

TEST_CASE("vision: patch features are timm's, whatever the instruction set and the number of threads") {
    const auto cases = reference_cases("vision");
    REQUIRE_FALSE(cases.empty());
    for (const auto& folder : cases) {
        CAPTURE(folder.string());
        const Checkpoint expected = Checkpoint::open(folder / "expected.safetensors");
        std::size_t      image_size = 0;
        if (std::filesystem::exists(folder / "run.json")) image_size = ConfigReader::open(folder / "run.json").count("img_size");
        const auto               pixels = floats(expected, "pixel_values");
        const std::size_t        n = expected.find("pixel_values")->shape[0];
        std::vector<float>       first;
        for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
            if (!runs(isa)) continue;
            CAPTURE(to_string(isa));
            std::vector<float> one_thread;
            for (std::size_t threads : {1, 2, 3, 7}) {
                Cpu        be{{.threads = threads, .isa = isa}};
                const auto tower = tower_from_pretrained(be, folder, image_size);
                const Run  r = run(be, tower.vit, pixels, n);
                CHECK(relative_error(r.features, floats(expected, "patch_features")) < 2e-4);
                if (expected.find("tokens_after_embed"))
                    CHECK(relative_error(r.embedded, floats(expected, "tokens_after_embed")) < 1e-5);
                if (expected.find("final_norm")) CHECK(relative_error(r.tokens, floats(expected, "final_norm")) < 2e-4);
                if (threads == 1) one_thread = r.features;
                CHECK(r.features == one_thread);
            }
        }
        if (const TensorInfo* table = expected.find("pos_embed")) {
            Cpu        be{{.threads = 1}};
            const auto tower = tower_from_pretrained(be, folder, image_size);
            const auto view = tower.vit.pos_embed.view();
            CHECK(relative_error(view.span(), to_floats(*table)) < 1e-5);
        }
    }
}

TEST_CASE("vision: one vector a picture is timm's: the pooling head's, or the class token") {
    struct Golden {  // timm 0.9.10, forward(pixel_values) of the folders' models with num_classes=0
        const char* name;
        double      first, last, second, norm;  // of picture 0, of picture 0, the first of picture 1, of all
    };
    for (const Golden& g : {Golden{"siglip", 0.4767426, -0.6424021, 0.2660565, 8.0347824}, Golden{"dino", -1.2358154, -1.1868085, -1.0544599, 14.1596651}}) {
        CAPTURE(g.name);
        const auto           folder = std::filesystem::path(PRISM_TEST_DATA) / "reference/vision" / g.name;
        Cpu                  be{{.threads = 2}};
        const auto           tower = tower_from_pretrained(be, folder);
        const VitConfig&     c = tower.vit.config;
        const auto           pixels = floats(Checkpoint::open(folder / "expected.safetensors"), "pixel_values");
        const PixelView<Cpu> view{pixels.data(), {2, 3, c.image_size, c.image_size}};
        std::vector<float>   out(2 * c.d_model);
        Workspace<Cpu>       ws{be, std::size_t{8} << 20};
        tower.vit.pooled(be, ws, view, {out.data(), {2, c.d_model}});
        double squares = 0;
        for (float x : out) squares += static_cast<double>(x) * static_cast<double>(x);
        CHECK(static_cast<double>(out[0]) == doctest::Approx(g.first).epsilon(1e-5));
        CHECK(static_cast<double>(out[c.d_model - 1]) == doctest::Approx(g.last).epsilon(1e-5));
        CHECK(static_cast<double>(out[c.d_model]) == doctest::Approx(g.second).epsilon(1e-5));
        CHECK(std::sqrt(squares) == doctest::Approx(g.norm).epsilon(1e-6));
    }
}

TEST_CASE("vision/positions: resampling agrees with PyTorch's bicubic on the golden table, antialiased and not") {
    std::vector<float> table(1369);
    for (std::size_t t = 0; t < table.size(); ++t)
        table[t] = std::fmod(static_cast<float>(t) * static_cast<float>(t), 101.0f) / 101.0f;
    struct Golden { std::size_t m; double a, b, c, middle, last, sum; bool antialias = true; };
    for (const Golden g : {Golden{16, 0.25487605, 0.59943354, 0.33414102, 0.23993072, 0.73205775, 126.83170, false},
                           Golden{27, 0.08887992, 0.02169945, 0.20163536, 0.23762377, 0.83218545, 362.08645, false},
                           Golden{48, -0.03923512, -0.02384363, 0.01343178, 0.49860185, 1.00918519, 1143.01589, false},
                           Golden{16, 0.20751074, 0.34559748, 0.39104822, 0.63747448, 0.71421331, 127.05043},
                           Golden{24, 0.16720024, 0.08223616, 0.35112193, 0.53539604, 0.75421202, 285.71384},
                           Golden{27, 0.14291748, 0.03855890, 0.25397336, 0.53833348, 0.77135378, 361.75351}}) {
        const auto r = resample_positions(table, 1, 0, g.m, g.antialias);
        REQUIRE(r.size() == g.m * g.m);
        double sum = 0;
        for (float x : r) sum += static_cast<double>(x);
        CHECK(std::abs(static_cast<double>(r[0]) - g.a) < 5e-6);
        CHECK(std::abs(static_cast<double>(r[1]) - g.b) < 5e-6);
        CHECK(std::abs(static_cast<double>(r[2]) - g.c) < 5e-6);
        CHECK(std::abs(static_cast<double>(r[g.m / 2 * g.m + g.m / 2]) - g.middle) < 5e-6);
        CHECK(std::abs(static_cast<double>(r.back()) - g.last) < 5e-6);
        CHECK(std::abs(sum - g.sum) < 2e-3);
    }
    CHECK_THROWS_AS(resample_positions(std::vector<float>(12), 1, 1, 3), ShapeError);
}
