#include "prism/io/name_map.hpp"

#include <doctest/doctest.h>

using namespace prism;

TEST_CASE("io/name_map: rules replace whole segments, in order") {
    const auto rename = NameMap{}
                            .prefix("llm_backbone.llm", "language_model")
                            .segment("projector.0", "projector.fc1")
                            .suffix("ls1.gamma", "ls1.scale_factor")
                            .prefix("module", "")
                            .segment("a", "b");
    CHECK(rename("llm_backbone.llm.norm.weight") == "language_model.norm.weight");
    CHECK(rename("llm_backbone.llms.norm.weight") == "llm_backbone.llms.norm.weight");
    CHECK(rename("x.llm_backbone.llm") == "x.llm_backbone.llm");
    CHECK(rename("projector.projector.0.weight") == "projector.projector.fc1.weight");
    CHECK(rename("projector.projector.01.weight") == "projector.projector.01.weight");
    CHECK(rename("blocks.3.ls1.gamma") == "blocks.3.ls1.scale_factor");
    CHECK(rename("blocks.3.ls1.gamma.x") == "blocks.3.ls1.gamma.x");
    CHECK(rename("module.module.w") == "module.w");
    CHECK(rename("a.a.c.a") == "b.b.c.b");
    CHECK(rename("") == "");
}

TEST_CASE("io/name_map: an empty map is the identity, an empty start puts something in front") {
    CHECK(NameMap{}("any.name") == "any.name");
    CHECK(NameMap{}.empty());
    CHECK(NameMap{}.prefix("", "model")("norm.weight") == "model.norm.weight");
    CHECK(NameMap{}.suffix("", "weight")("norm") == "norm.weight");
    CHECK(NameMap{}.segment("", "x")("norm") == "norm");
    CHECK(NameMap{}.segment("x", "")("a.x.x.b") == "a.b");
    CHECK(NameMap{}.segment("x", "x.x")("x.x") == "x.x.x.x");
}

TEST_CASE("io/name_map: the nearest name is the one of fewest edits") {
    CHECK(edit_distance("kitten", "sitting") == 3);
    CHECK(edit_distance("", "abc") == 3);
    CHECK(edit_distance("abc", "abc") == 0);
    CHECK(edit_distance("aaaaaaaa", "bbbbbbbb", 3) == 3);
    const std::vector<std::string> names{"blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.0.norm2.weight"};
    CHECK(nearest_name("blocks.0.norm1.wieght", names) == "blocks.0.norm1.weight");
    CHECK(nearest_name("block.0.norm2.weight", names) == "blocks.0.norm2.weight");
    CHECK_FALSE(nearest_name("something.else.entirely", names).has_value());
    CHECK_FALSE(nearest_name("x", std::vector<std::string>{}).has_value());
}
