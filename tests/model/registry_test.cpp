// The table of contents: 49 models by id and paper name, and what they are made of.
#include "prism/backend/dry/dry.hpp"
#include "prism/model/load.hpp"
#include "prism/model/prismatic.hpp"

#include <doctest/doctest.h>

#include <set>

using namespace prism;

namespace {

struct Totals {
    std::size_t towers = 0, pools = 0, projector = 0, llm = 0;
};
Totals totals(const Prismatic<Dry>& m) {
    Totals t{.projector = count_parameters(m.projector), .llm = count_parameters(m.llm)};
    for (const auto& tower : m.towers) t.pools += count_parameters(tower.attn_pool), t.towers += count_parameters(tower);
    t.towers -= t.pools;
    return t;
}

std::size_t tower_parameters(const VitConfig& c) {
    const Vit<Dry> vit{c};
    return count_parameters(vit) - count_parameters(vit.attn_pool);
}

}  // namespace

TEST_CASE("model/registry: all 49 published models resolve, by id and by every paper name, to the same composition") {
    CHECK(registry.size() == 49);
    std::set<std::string_view> all;
    std::size_t                n_names = 0;
    for (const RegisteredModel& m : registry) {
        CHECK(all.insert(m.id).second);
        CHECK(&registered_model(m.id) == &m);
        std::string_view rest = m.names;
        while (!rest.empty()) {
            const std::size_t end = std::min(rest.find("; "), rest.size());
            const auto        name = rest.substr(0, end);
            CHECK(all.insert(name).second);
            CHECK(&registered_model(name) == &m);
            CHECK(composition_of(name).model_id == m.id);
            rest.remove_prefix(std::min(end + 2, rest.size()));
            ++n_names;
        }
        const PrismaticConfig c = composition_of(m.id);
        CHECK(c.n_patches() > 0);
        CHECK(c.towers.size() == backbone_from_id(m.vision_backbone_id).n_towers);
        for (const auto& t : c.towers) {
            CHECK(t.vit.n_patches() == c.n_patches());
            CHECK(t.transform.strategy == m.image_resize_strategy);
            CHECK(t.transform.size == t.vit.image_size);
        }
    }
    CHECK(n_names == 63);
    CHECK_THROWS_WITH_AS(registered_model("prism-clip+8b"), doctest::Contains("'model' is prism-clip+8b; allowed: reproduction-llava-v15+7b, "), ConfigError);
}

TEST_CASE("model/registry: every composition can be built, and its projector's input is as wide as its towers") {
    for (const RegisteredModel& m : registry) {
        const Prismatic<Dry> model{composition_of(m.id)};
        CHECK(model.projector.d_vision() == model.config.d_vision());
        CHECK(model.n_soft_tokens() == model.config.n_patches());
    }
}

TEST_CASE("model/registry: the parameters of the compositions are those that their papers and files have") {
    const Totals large = totals(Prismatic<Dry>{composition_of("prism-dinosiglip+7b")});
    CHECK(large.towers == 303'715'328 + 412'987'248);
    CHECK(large.pools == 15'238'352);
    CHECK(large.projector == 71'385'600);
    CHECK(large.llm == 6'738'939'904);
    const Totals small = totals(Prismatic<Dry>{composition_of("prism-dinosiglip-224px+7b")});
    CHECK(small.towers == 303'230'976 + 412'442'352);
    const Totals clip = totals(Prismatic<Dry>{composition_of("prism-clip+7b")});
    CHECK((clip.towers == 303'507'456 && clip.pools == 0 && clip.projector == 20'979'712));

    const auto projector = [](const char* id) { return totals(Prismatic<Dry>{composition_of(id)}).projector; };
    CHECK(projector("prism-siglip+7b") == 21'504'000);
    CHECK(projector("prism-clip+13b") == 31'467'520);
    CHECK(projector("prism-siglip-controlled+13b") == 32'122'880);
    CHECK(projector("phi-2+3b") == 9'180'160);
    CHECK(projector("prism-dinosiglip+13b") == 89'737'728);
    CHECK(projector("dinoclip-336px-letterbox+7b") == 67'125'248);

    const auto llm = [](const char* id) { return totals(Prismatic<Dry>{composition_of(id)}).llm; };
    CHECK(llm("prism-clip+13b") == 13'016'519'680);
    CHECK(llm("mistral-v0.1+7b") == 7'242'256'384);
    CHECK(llm("phi-2+3b") == 2'775'095'424);
}

TEST_CASE("model/registry: the parameters of the towers are those of timm") {
    CHECK(tower_parameters(vit::clip_b16()) == 85'799'424);
    CHECK(tower_parameters(vit::clip_l14(224)) == 303'179'776);
    CHECK(tower_parameters(vit::clip_l14(336)) == 303'507'456);
    CHECK(tower_parameters(vit::siglip_b16(224)) == 85'797'120);
    CHECK(tower_parameters(vit::siglip_b16(256)) == 85'843'200);
    CHECK(tower_parameters(vit::siglip_b16(384)) == 86'088'960);
    CHECK(count_parameters(Vit<Dry>{vit::siglip_b16()}.attn_pool) == 7'087'104);
    CHECK(tower_parameters(vit::dinov2_l14_reg4(336)) == 303'558'656);
    CHECK(tower_parameters(vit::dinov2_l14_reg4(518)) == 304'370'688);
    CHECK(tower_parameters(vit::in1k_l16()) == 303'301'632);
    CHECK(count_parameters(VitBlock<Dry>{vit::clip_l14()}) == 12'596'224);
    CHECK(count_parameters(VitBlock<Dry>{vit::dinov2_l14_reg4()}) == 12'598'272);
    CHECK(count_parameters(VitBlock<Dry>{vit::siglip_so400m14()}) == 15'239'504);
    CHECK(count_parameters(VitBlock<Dry>{vit::siglip_b16()}) == 7'087'872);
}

TEST_CASE("model/registry: a backbone's towers have the sizes, statistics and activations of the table") {
    struct Row { const char* id; std::size_t n_patches, d_vision, n_tokens; };
    for (const Row& r : {Row{"clip-vit-b", 196, 768, 197}, Row{"clip-vit-l", 256, 1024, 257}, Row{"clip-vit-l-336px", 576, 1024, 577}, Row{"siglip-vit-b16-224px", 196, 768, 196},
                         Row{"siglip-vit-b16-256px", 256, 768, 256}, Row{"siglip-vit-b16-384px", 576, 768, 576}, Row{"siglip-vit-so400m", 256, 1152, 256},
                         Row{"siglip-vit-so400m-384px", 729, 1152, 729}, Row{"dinov2-vit-l", 256, 1024, 261}, Row{"in1k-vit-l", 196, 1024, 197},
                         Row{"dinoclip-vit-l-336px", 576, 2048, 581}, Row{"dinosiglip-vit-so-224px", 256, 2176, 261}, Row{"dinosiglip-vit-so-384px", 729, 2176, 734}}) {
        const BackboneSpec& b = backbone_from_id(r.id);
        std::size_t         d = 0;
        for (std::size_t i = 0; i < b.n_towers; ++i) {
            const VitConfig c = tower_config(b, i);
            CHECK(c.n_patches() == r.n_patches);
            d += c.d_model;
        }
        CHECK(d == r.d_vision);
        CHECK(tower_config(b, 0).n_tokens() == r.n_tokens);
    }
    CHECK(tower_config(backbone_from_id("clip-vit-l"), 0).act == Activation::quick_gelu);
    CHECK(tower_config(backbone_from_id("dinoclip-vit-l-336px"), 1).act == Activation::gelu_erf);  // as the trained models are
    CHECK_THROWS_AS(backbone_from_id("clip-vit-h"), ConfigError);
    CHECK_THROWS_AS(language_backbone_from_id("llama3-8b"), ConfigError);
}

TEST_CASE("model/prismatic: towers of different grids are refused") {
    PrismaticConfig c = composition_of("prism-dinosiglip-224px+7b");
    c.towers[1].vit.image_size = 384;
    try {
        Prismatic<Dry> model{c};
        FAIL("they were taken");
    } catch (const ConfigError& e) {
        CHECK((e.key == "vision_backbone_id" && e.value == "dinosiglip-vit-so-224px with 729 patches in 'siglip'" && e.allowed == "towers of one grid: 256 patches"));
    }
}
