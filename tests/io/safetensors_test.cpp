#include "prism/io/safetensors.hpp"

#include "support.hpp"
#include "support/cases.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// A file with this header, padded as it stands, and `n` bytes of data.
std::string file_of(const std::string& header, std::size_t n) {
    std::string data(n, '\0');
    for (std::size_t i = 0; i < n; ++i) data[i] = static_cast<char>(i + 1);
    return u64(header.size()) + header + data;
}
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"x":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}
Safetensors safetensors_of(const std::string& text) { return read_safetensors(in_memory(text, "a.safetensors")); }

const std::string worked_example =
    u64(144) +
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I16","shape":[2,1],"data_offsets":[8,12]}}   )" +
    le(1.0f) + le(2.0f) + u16(3) + u16(4);

}  // namespace

TEST_CASE("io/safetensors: the example of the specification loads, and is written byte for byte") {
    const auto [tensors, metadata] = safetensors_of(worked_example);
    REQUIRE(tensors.size() == 2);
    CHECK(metadata.at("format") == "pt");
    CHECK(tensors[0].name == "a");
    CHECK(tensors[0].dtype == Dtype::f32);
    CHECK(to_floats(tensors[0]) == std::vector<float>{1, 2});
    CHECK(tensors[1].shape == std::vector<std::size_t>{2, 1});
    CHECK(to_integers(tensors[1]) == std::vector<std::int64_t>{3, 4});

    const TempFolder        folder;
    std::vector<TensorData> data;
    for (const auto& t : {tensors[1], tensors[0]}) data.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes()}});
    write_safetensors(folder.path() / "x", data, metadata);
    CHECK(read_file(folder.path() / "x") == worked_example);
}

TEST_CASE("io/safetensors: every reference file comes back byte for byte when it is written again") {
    const TempFolder folder;
    for (const auto& root : reference_roots()) {
        if (!std::filesystem::exists(root / "formats" / "expected.safetensors")) continue;
        const auto              file = root / "formats" / "expected.safetensors";
        const auto              read = read_safetensors(file);
        std::vector<TensorData> data;
        for (const auto& t : read.tensors) data.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes()}});
        write_safetensors(folder.path() / "again", data, read.metadata);
        CHECK(read_file(folder.path() / "again") == read_file(file));
    }
}

TEST_CASE("io/safetensors: padding, no tensors, tensors without elements, scalars and odd types load") {
    CHECK(safetensors_of(file_of("{}", 0)).tensors.empty());
    CHECK(safetensors_of(file_of("{}      ", 0)).tensors.empty());
    CHECK(safetensors_of(file_of(R"({"__metadata__":{}})", 0)).tensors.empty());
    CHECK(safetensors_of(file_of(entry("\"F32\"", "[0,5]", "[0,0]"), 0)).tensors[0].shape == std::vector<std::size_t>{0, 5});
    CHECK(safetensors_of(file_of(entry("\"I32\"", "[]", "[0,4]"), 4)).tensors[0].elements() == 1);
    CHECK(safetensors_of(file_of(entry("\"F4\"", "[2,3]", "[0,3]"), 3)).tensors[0].dtype == Dtype::other);
    CHECK(safetensors_of(file_of(entry("\"F8_E8M0\"", "[3]", "[0,3]"), 3)).tensors[0].dtype == Dtype::other);
    CHECK(safetensors_of(file_of(entry("\"F8_E4M3\"", "[3]", "[0,3]"), 3)).tensors[0].dtype == Dtype::f8_e4m3);
    CHECK(safetensors_of(file_of(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":[[]]}})", 1)).tensors.size() ==
          1);
}

TEST_CASE("io/safetensors: a header that is no header is refused") {
    const auto refused = [](const std::string& text, std::string_view part) {
        return says(message<FormatError>([&] { safetensors_of(text); }), part);
    };
    CHECK(refused("", "header length"));
    CHECK(refused("1234567", "header length"));
    CHECK(refused(u64(0), "no JSON object"));
    CHECK(refused(u64(3) + "{}", "2 are left"));
    CHECK(refused(u64(100'000'001) + "{}", "over the limit"));
    CHECK(refused(u64(~0ULL) + "{}", "over the limit"));
    CHECK(refused(file_of("[]", 0), "no JSON object"));
    CHECK(refused(file_of(" {}", 0), "no JSON object"));
    CHECK(refused(file_of("{\"a\"}", 0), "not JSON"));
    CHECK(refused(file_of("{}x", 0), "not JSON"));
    CHECK(refused(file_of("{\"\xff\":1}", 0), "UTF-8"));
    CHECK(refused(file_of("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", 0), "nested deeper"));
    CHECK(refused(file_of(R"({"__metadata__":[]})", 0), "__metadata__"));
    CHECK(refused(file_of(R"({"__metadata__":{"a":1}})", 0), "'a' is no string"));
    CHECK(refused(
        file_of(
            R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
            2),
        "twice"));
}

TEST_CASE("io/safetensors: a wrong entry is refused by the tensor's name") {
    const auto refused = [](const std::string& header, std::size_t n, std::string_view part) {
        const std::string what = message<FormatError>([&] { safetensors_of(file_of(header, n)); });
        return says(what, "tensor 'x'") && says(what, part) && says(what, "a.safetensors: byte ");
    };
    CHECK(refused(R"({"x":7})", 0, "no object"));
    CHECK(refused(R"({"x":{"shape":[1],"data_offsets":[0,1]}})", 1, "no dtype"));
    CHECK(refused(R"({"x":{"dtype":"U8","data_offsets":[0,1]}})", 1, "no shape"));
    CHECK(refused(R"({"x":{"dtype":"U8","shape":[1]}})", 1, "no data_offsets"));
    CHECK(refused(entry("\"F33\"", "[1]", "[0,4]"), 4, "unknown dtype \"F33\""));
    CHECK(refused(entry("32", "[1]", "[0,4]"), 4, "unknown dtype 32"));
    CHECK(refused(entry("\"U8\"", "[-1]", "[0,1]"), 1, "-1 in its shape"));
    CHECK(refused(entry("\"U8\"", "[1.0]", "[0,1]"), 1, "1.0 in its shape"));
    CHECK(refused(entry("\"U8\"", "[\"1\"]", "[0,1]"), 1, "in its shape"));
    CHECK(refused(entry("\"U8\"", "1", "[0,1]"), 1, "no list"));
    CHECK(refused(entry("\"U8\"", "[1]", "[0]"), 1, "1 data_offsets"));
    CHECK(refused(entry("\"U8\"", "[1]", "[0,18446744073709551616]"), 1, "in its data_offsets"));
    CHECK(refused(entry("\"U8\"", "[4294967296,4294967296,4294967296]", "[0,1]"), 1, "too large"));
    CHECK(refused(entry("\"F64\"", "[4611686018427387904]", "[0,0]"), 0, "too large"));
    CHECK(refused(entry("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "too large"));
    CHECK(refused(entry("\"U8\"", "[1]", "[1,0]"), 1, "before it begins"));
    CHECK(refused(entry("\"U8\"", "[4]", "[0,4]"), 3, "which has 3 bytes"));
    CHECK(refused(entry("\"U8\"", "[4]", "[0,5]"), 5, "takes 4"));
    CHECK(refused(entry("\"F4\"", "[3]", "[0,2]"), 2, "takes 1"));
    CHECK(refused(entry("\"U8\"", "[1]", "[1,2]"), 2, "begins at 1"));
    const auto two = [](const std::string& first, const std::string& second) {
        return R"({"w":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
               R"(},"x":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
    };
    CHECK(refused(two("[0,4]", "[3,7]"), 8, "begins at 3"));
    CHECK(refused(two("[0,4]", "[5,9]"), 9, "begins at 5"));
    CHECK(
        says(message<FormatError>([&] { safetensors_of(file_of(two("[0,4]", "[4,8]"), 9)); }), "1 bytes follow the last tensor"));
    CHECK_NOTHROW(safetensors_of(file_of(two("[4,8]", "[0,4]"), 8)));
}

TEST_CASE("io/safetensors: every damaged form is refused or read") {
    damage(worked_example, [](const std::string& text) { sum(safetensors_of(text).tensors); });
}

TEST_CASE("io/safetensors: what cannot be written is refused, and nothing appears") {
    const TempFolder             folder;
    const auto                   file = folder.path() / "x";
    const std::vector<std::byte> bytes(4);
    const auto                   refused = [&](std::vector<TensorData> tensors) {
        return message<LoadError>([&] { write_safetensors(file, tensors); });
    };
    CHECK(says(refused({{"a", Dtype::u8, {4}, bytes}, {"a", Dtype::i8, {4}, bytes}}), "tensor 'a': expected one"));
    CHECK(says(refused({{"a", Dtype::f32, {2}, bytes}}), "found 4 bytes"));
    CHECK(says(refused({{"a", Dtype::other, {}, {}}}), "an element type"));
    CHECK(says(refused({{"__metadata__", Dtype::u8, {4}, bytes}}), "reserves"));
    CHECK(says(refused({{"\xff", Dtype::u8, {4}, bytes}}), "UTF-8"));
    CHECK(std::filesystem::is_empty(folder.path()));
    write_safetensors(file, {});
    CHECK(read_safetensors(file).tensors.empty());
}
