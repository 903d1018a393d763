// Any bytes as config.json: JSON or FormatError, and every question asked of it answered or a ConfigError.
#include "prism/io/config.hpp"

namespace {

template <class Ask>
void ask(Ask question) {
    try {
        question();
    } catch (const prism::ConfigError&) {}
}

void ask_all(const prism::ConfigReader& c) {
    for (const auto& item : c.json().items()) {
        const std::string& key = item.key();
        ask([&] { c.count(key); });
        ask([&] { c.integer(key, -100, 100, 0); });
        ask([&] { c.real(key); });
        ask([&] { c.flag(key); });
        ask([&] { c.text(key, "fallback"); });
        ask([&] { c.choice(key, {"silu", "gelu"}); });
        ask([&] { c.counts(key); });
        ask([&] { c.reals(key); });
        ask([&] { c.texts(key); });
        ask([&] { ask_all(c.object(key)); });
        ask([&] {
            for (const auto& inner : c.objects(key)) ask_all(inner);
        });
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n) {
    using namespace prism;
    try {
        Json json = parse_json({reinterpret_cast<const char*>(data), n}, "fuzz");
        ask([&] { ask_all(ConfigReader{std::move(json), "fuzz"}); });
    } catch (const FormatError&) {}
    return 0;
}
