#include "prism/io/json.hpp"

#include "support.hpp"

using namespace prism;
using namespace prism::test;

TEST_CASE("io/json: values come through as they are written") {
    const Json json = parse_json(R"( {"a": [1, -2, 2.5, true, null, "\u00e9\n"], "b": {}} )", "x.json");
    CHECK(json["a"][0] == 1);
    CHECK(json["a"][1] == -2);
    CHECK(json["a"][2] == 2.5);
    CHECK(json["a"][3] == true);
    CHECK(json["a"][4].is_null());
    CHECK(json["a"][5] == "\xc3\xa9\n");
    CHECK(json["b"].is_object());
    CHECK(parse_json("18446744073709551615", "x") == UINT64_MAX);
}

TEST_CASE("io/json: what is not JSON is a FormatError at its byte") {
    struct Case {
        std::string   text;
        std::uint64_t byte;
    };
    for (const Case& bad : std::vector<Case>{{"", 0},
                                             {"[1, 2", 5},
                                             {"{\"a\" 1}", 5},
                                             {"nul", 3},
                                             {"[1] x", 4},
                                             {"\"\xff\"", 1},
                                             {"[1e999]", 5},
                                             {"\"\\ud800\"", 7},
                                             {"[01]", 2}}) {
        INFO(bad.text);
        try {
            parse_json(bad.text, "x.json");
            CHECK(false);
        } catch (const FormatError& e) {
            CHECK(e.file == "x.json");
            CHECK(e.byte == bad.byte);
        }
    }
}

TEST_CASE("io/json: a name twice and more than 64 levels are refused") {
    CHECK(says(message<FormatError>([] { parse_json(R"({"a": 1, "b": {"a": 2, "a": 3}})", "x"); }),
               "byte 25: the name \"a\" stands twice"));
    CHECK_NOTHROW(parse_json(std::string(64, '[') + std::string(64, ']'), "x"));
    CHECK(says(message<FormatError>([] { parse_json(std::string(1'000'000, '['), "x"); }),
               "byte 64: nested deeper than 64"));
    std::string objects;
    for (int i = 0; i < 65; ++i) objects += "{\"a\":";
    CHECK(says(message<FormatError>([&] { parse_json(objects, "x"); }), "nested deeper"));
}

TEST_CASE("io/json: every damaged form of a text is refused or read") {
    damage(R"({"weight_map": {"a.b": "x-1.safetensors", "c": [1, 2.5e3, -7, true, null, "\u00e4"]}})",
           [](const std::string& text) { parse_json(text, "x"); });
}
