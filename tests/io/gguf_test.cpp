#include "prism/io/gguf.hpp"

#include "support.hpp"
#include "support/gguf.hpp"

using namespace prism;
using namespace prism::test;
using namespace prism::test::gguf;

namespace {

Gguf gguf_of(const std::string& bytes) { return Gguf{in_memory(bytes, "a.gguf")}; }
bool refused_gguf(const std::string& bytes, std::string_view part) {
    return says(message<FormatError>([&] { gguf_of(bytes); }), part);
}

const std::string six = le(0.f) + le(1.f) + le(2.f) + le(3.f) + le(4.f) + le(5.f);
const std::string q8 = u16(0x3400) + std::string(32, '\x02');  // 32 times 0.25 * 2

std::string example() {
    return whole_file({pair("general.architecture", 8, counted("llama")), pair("llama.block_count", 4, u32(7)),
                    pair("eps", 6, le(1e-5f)), pair("on", 7, "\x01"),
                    pair("tokens", 9, u32(8) + u64(3) + counted("a") + counted("") + counted("bc")),
                    pair("scores", 9, u32(6) + u64(2) + le(0.5f) + le(-1.f)),
                    pair("ids", 9, u32(5) + u64(2) + le(std::int32_t{-1}) + le(std::int32_t{5})),
                    pair("big", 10, u64(~0ULL))},
                   {info("w", {3, 2}, 0, 0), info("q", {32, 1}, 8, 32)}, six + std::string(8, '\0') + q8);
}

}  // namespace

TEST_CASE("io/gguf: metadata and tensors are read") {
    const Gguf file = gguf_of(example());
    CHECK(file.version() == 3);
    CHECK(file.get("general.architecture").text() == "llama");
    CHECK(file.get("llama.block_count").integer() == 7);
    CHECK(file.get("llama.block_count").real() == 7);
    CHECK(file.get("eps").real() == doctest::Approx(1e-5));
    CHECK(file.get("on").flag());
    CHECK(file.get("tokens").texts() == std::vector<std::string_view>{"a", "", "bc"});
    CHECK(file.get("scores").reals() == std::vector<double>{0.5, -1});
    CHECK(file.get("ids").integers() == std::vector<std::int64_t>{-1, 5});
    CHECK_FALSE(file.has("none"));
    CHECK_THROWS_AS(file.get("none"), ConfigError);
    CHECK_THROWS_AS(file.get("eps").integer(), ConfigError);
    CHECK_THROWS_AS(file.get("eps").text(), ConfigError);
    CHECK_THROWS_AS(file.get("tokens").text(), ConfigError);
    CHECK_THROWS_AS(file.get("tokens").reals(), ConfigError);
    CHECK_THROWS_AS(file.get("big").integer(), ConfigError);
    CHECK_THROWS_AS(file.get("eps").flag(), ConfigError);

    const GgufTensor* w = file.find("w");
    REQUIRE(w);
    CHECK(w->info.shape == std::vector<std::size_t>{2, 3});
    CHECK(to_floats(w->info) == std::vector<float>{0, 1, 2, 3, 4, 5});
    const GgufTensor* q = file.find("q");
    REQUIRE(q);
    CHECK(q->info.dtype == Dtype::other);
    CHECK(to_floats(*q) == std::vector<float>(32, 0.5f));
    CHECK(file.find("none") == nullptr);
    CHECK(gguf_of(whole_file({pair("k", 0, "x")}, {}, "")).tensors().empty());
    CHECK(gguf_of(whole_file({}, {info("w", {3, 2}, 0, 0)}, six, 32, 2)).tensors().size() == 1);
    CHECK(gguf_of(whole_file({pair("general.alignment", 4, u32(8))}, {info("w", {3, 2}, 0, 0)}, six, 8)).tensors().size() ==
          1);
}

// Block bytes (37 i + 11) mod 256, then d = 0.25 and m or dmin = 0.125: the sums were taken with the Python package
// gguf.
TEST_CASE("io/gguf: quantised blocks give exactly the values of ggml") {
    struct Vector {
        GgmlType type;
        float    first, second, middle, last;
        double   sum, weighted_sum;
    };
    for (const Vector& v : {Vector{GgmlType::q4_0, -0.75f, 0.5f, -0.75f, 0, -5.25, -124.25},
                            Vector{GgmlType::q4_1, 3.875f, 1.125f, 2.375f, 3.125f, 65.25, 996.5},
                            Vector{GgmlType::q5_0, 2.25f, -0.5f, 3.5f, 0.25f, 3.75, 24.25},
                            Vector{GgmlType::q5_1, 4.875f, 6.125f, 4.875f, 1.375f, 130.25, 1911},
                            Vector{GgmlType::q8_0, 21.25f, 30.5f, -22.75f, -12, -44, -1976},
                            Vector{GgmlType::q4_k, 78.875f, -6.375f, 105.75f, 12.125f, 13610, 1879600},
                            Vector{GgmlType::q5_k, 202.875f, -6.375f, 261.75f, 27.125f, 29054, 3977808},
                            Vector{GgmlType::q6_k, -357.75f, 424, -87.75f, -15, 1153, 194952}}) {
        const GgmlLayout& layout = *ggml_layout(v.type);
        INFO(layout.name);
        std::vector<std::byte> block(layout.block_bytes);
        for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>((37 * i + 11) % 256);
        const auto half = [&](std::size_t at, unsigned high) {
            block[at] = std::byte{0}, block[at + 1] = static_cast<std::byte>(high);
        };
        half(v.type == GgmlType::q6_k ? 208 : 0, 0x34);
        if (v.type == GgmlType::q4_1 || v.type == GgmlType::q5_1 || v.type == GgmlType::q4_k ||
            v.type == GgmlType::q5_k)
            half(2, 0x30);

        std::vector<float> y(layout.values_per_block);
        dequantise(v.type, block, y);
        double total = 0, weighted = 0;
        for (std::size_t i = 0; i < y.size(); ++i) total += y[i], weighted += static_cast<double>(i) * y[i];
        CHECK(y[0] == v.first);
        CHECK(y[1] == v.second);
        CHECK(y[y.size() / 2] == v.middle);
        CHECK(y.back() == v.last);
        CHECK(total == v.sum);
        CHECK(weighted == v.weighted_sum);
        CHECK_THROWS_AS(dequantise(v.type, std::span(block).first(block.size() - 1), y), ShapeError);
    }
}

TEST_CASE("io/gguf: a wrong file is refused") {
    CHECK(refused_gguf("GGUX", "no GGUF file"));
    CHECK(refused_gguf("GGUF" + u32(1) + u64(0) + u64(0), "version 1"));
    CHECK(refused_gguf("GGUF" + u32(0x03000000) + u64(0) + u64(0), "big-endian"));
    CHECK(refused_gguf("GGUF" + u32(3) + u64(~0ULL) + u64(0), "tensors do not fit"));
    CHECK(refused_gguf("GGUF" + u32(3) + u64(0) + u64(1ULL << 60), "pairs do not fit"));
    const auto bad_pair = [](const std::string& p, std::string_view part) {
        return refused_gguf(whole_file({p}, {}, std::string(64, '\0')), part);
    };
    CHECK(bad_pair(u64(~0ULL) + "k" + u32(0), "a key needs"));
    CHECK(bad_pair(pair("k", 13, ""), "value type 13"));
    CHECK(bad_pair(pair("k", 8, u64(1ULL << 40)), "a string needs"));
    CHECK(bad_pair(pair("k", 9, u32(9) + u64(1)), "array of arrays"));
    CHECK(bad_pair(pair("k", 9, u32(8) + u64(1ULL << 61)), "too many"));
    CHECK(bad_pair(pair("k", 9, u32(10) + u64(1ULL << 61)), "too many"));
    CHECK(bad_pair(pair("k", 9, u32(4) + u64(1000)), "a value needs 4000 bytes"));
    CHECK(bad_pair(pair("k", 7, "\x02"), "truth value"));
    CHECK(refused_gguf(whole_file({pair("k", 0, "x"), pair("k", 0, "x")}, {}, ""), "the key 'k' is there twice"));

    const auto bad_info = [](const std::string& i, std::string_view part, const std::string& data = six) {
        return refused_gguf(whole_file({}, {i}, data), part);
    };
    CHECK(bad_info(info("w", {}, 0, 0), "0 dimensions"));
    CHECK(bad_info(info("w", {1, 1, 1, 1, 1}, 0, 0), "5 dimensions"));
    CHECK(bad_info(info("w", {6}, 4, 0), "the type 4"));
    CHECK(bad_info(info("w", {6}, 16, 0), "the type 16"));
    CHECK(bad_info(info("w", {1ULL << 40, 1ULL << 40}, 0, 0), "too large"));
    CHECK(bad_info(info("w", {1ULL << 63}, 0, 0), "too large"));
    CHECK(bad_info(info("w", {33}, 8, 0), "no multiple of the 32 of Q8_0", std::string(34, 'x')));
    CHECK(bad_info(info("w", {6}, 0, 8), "no multiple of 32"));
    CHECK(bad_info(info("w", {6}, 0, 32), "takes 24 bytes at 32"));
    CHECK(bad_info(info("w", {7}, 0, 0), "takes 28 bytes at 0"));
    CHECK(bad_info(info("w", {6}, 0, 1ULL << 63), "takes 24 bytes"));
    CHECK(refused_gguf(whole_file({}, {info("w", {6}, 0, 0), info("w", {6}, 0, 0)}, six), "tensor 'w' is there twice"));
    CHECK(refused_gguf(whole_file({pair("general.alignment", 4, u32(24))}, {info("w", {6}, 0, 0)}, six), "no power of two"));
    CHECK(refused_gguf(whole_file({pair("general.alignment", 4, u32(0))}, {info("w", {6}, 0, 0)}, six), "no power of two"));
    CHECK(refused_gguf(whole_file({pair("general.alignment", 8, counted("x"))}, {info("w", {6}, 0, 0)}, six), "no u32"));
}

TEST_CASE("io/gguf: every damaged form is refused or read") {
    damage(example(), [](const std::string& bytes) {
        const Gguf file = gguf_of(bytes);
        for (const auto& t : file.tensors()) to_floats(t);
        for (const auto& pair : file.metadata()) {
            const GgufValue& value = pair.second;
            if (value.type() == GgufValue::Type::text) value.texts();
            else value.reals();
            message([&] { value.integers(); });
        }
    });
}
