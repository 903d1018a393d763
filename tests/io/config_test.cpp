#include "prism/io/config.hpp"

#include "support.hpp"

using namespace prism;
using namespace prism::test;

namespace {

ConfigReader reader(const std::string& text) { return {parse_json(text, "config.json"), "config.json"}; }

template <class Use>
void refused(Use use, const std::string& key, const std::string& value, const std::string& allowed) {
    try {
        use();
        FAIL_CHECK("not refused: ", key);
    } catch (const ConfigError& e) {
        CHECK(e.key == key);
        CHECK(e.value == value);
        CHECK(e.allowed == allowed);
        CHECK(says(e.what(), "config.json: '" + key + "' is " + (value.empty() ? "missing" : value)));
    }
}

}  // namespace

TEST_CASE("io/config: values of the right type and range are read, absent and null ones take the fallback") {
    const auto c = reader(
        R"({"n": 12, "e": 1e-6, "i": -100, "on": true, "name": "silu", "none": null, "sizes": [2, 3], "mean": [0.5, 1],
                              "names": ["a"], "inner": {"n": 7, "deep": {"x": 1}}, "list": [{"n": 1}, {"n": 2}]})");
    CHECK(c.count("n") == 12);
    CHECK(c.count("none", 5) == 5);
    CHECK(c.count("absent", 0) == 0);
    CHECK(c.real("e") == 1e-6);
    CHECK(c.real("n") == 12);
    CHECK(c.real("absent", 0.5) == 0.5);
    CHECK(c.integer("i", -100, 100) == -100);
    CHECK(c.flag("on"));
    CHECK_FALSE(c.flag("absent", false));
    CHECK(c.text("name") == "silu");
    CHECK(c.text("absent", "gelu") == "gelu");
    CHECK(c.choice("name", {"gelu", "silu"}) == "silu");
    CHECK(c.counts("sizes") == std::vector<std::size_t>{2, 3});
    CHECK(c.reals("mean") == std::vector<double>{0.5, 1});
    CHECK(c.texts("names") == std::vector<std::string>{"a"});
    CHECK(c.texts("absent", std::vector<std::string>{}).empty());
    CHECK(c.object("inner").count("n") == 7);
    CHECK(c.objects("list").at(1).count("n") == 2);
    CHECK(c.has("n"));
    CHECK_FALSE(c.has("none"));
    CHECK_FALSE(c.has("absent"));
}

TEST_CASE("io/config: a wrong value is a ConfigError with its key, the value and what is allowed") {
    const auto c = reader(
        R"({"zero": 0, "minus": -3, "half": 0.5, "big": 16777217, "huge": 18446744073709551615, "text": "7", "on": 1,
                              "act": "swish", "sizes": [1, 0], "inner": {"deep": {"n": "x"}}, "list": [{"n": 1}, {"n": []}], "obj": 3})");
    const std::string count = "an integer from 1 to 16777216";
    refused([&] { c.count("absent"); }, "absent", "", count);
    refused([&] { c.count("zero"); }, "zero", "0", count);
    refused([&] { c.count("minus"); }, "minus", "-3", count);
    refused([&] { c.count("half"); }, "half", "0.5", count);
    refused([&] { c.count("big"); }, "big", "16777217", count);
    refused([&] { c.count("huge"); }, "huge", "18446744073709551615", count);
    refused([&] { c.count("text", 3); }, "text", "\"7\"", count);
    refused([&] { c.integer("huge", -5, 5); }, "huge", "18446744073709551615", "an integer from -5 to 5");
    refused([&] { c.flag("on"); }, "on", "1", "true or false");
    refused([&] { c.text("on"); }, "on", "1", "a string");
    refused([&] { c.real("text"); }, "text", "\"7\"", "a finite number");
    refused([&] { c.choice("act", {"gelu", "silu", "relu"}); }, "act", "\"swish\"", "'gelu', 'silu' or 'relu'");
    refused([&] { c.counts("sizes"); }, "sizes.1", "0", count);
    refused([&] { c.counts("obj"); }, "obj", "3", "a list");
    refused([&] { c.object("inner").object("deep").count("n"); }, "inner.deep.n", "\"x\"", count);
    refused([&] { c.object("inner").object("none"); }, "inner.none", "", "an object");
    refused([&] { c.object("obj"); }, "obj", "3", "an object");
    refused([&] { c.objects("list").at(1).count("n"); }, "list.1.n", "[]", count);
    refused([&] { c.refuse("zero", "a divisor of 12"); }, "zero", "0", "a divisor of 12");
    refused([] { reader("[]"); }, "(document)", "[]", "an object");
}

TEST_CASE("io/config: a reader keeps its document alive, and files that are no JSON are ConfigErrors") {
    const TempFolder folder;
    const auto       inner =
        ConfigReader::open(folder.write("config.json", R"({"a": {"b": {"n": 3}}})")).object("a").object("b");
    CHECK(inner.count("n") == 3);
    CHECK(says(message<ConfigError>([&] { ConfigReader::open(folder.write("bad.json", "{\"a\": }")); }), "not JSON"));
    CHECK_THROWS_AS(ConfigReader::open(folder.path() / "missing.json"), LoadError);
    const std::string shown =
        message<ConfigError>([] { reader("{\"k\": \"" + std::string(5000, 'x') + "\"}").count("k"); });
    CHECK(shown.size() < 250);
}
