#include "prism/io/bundle.hpp"

#include "support.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// A file with this header, whose checksum is right, and these data.
std::string file_of(const std::string& header, const std::string& data = {}) {
    std::string text = "\x89prism\r\n" + u32(1) + u32(detail::crc32_of(std::as_bytes(std::span{header}))) + u64(header.size()) + header;
    text.resize((text.size() + 4095) / 4096 * 4096);
    return text + data;
}
std::string entries(const std::string& list) { return R"({"contents":{},"entries":[)" + list + "]}"; }
std::string entry(const std::string& name, std::size_t begin, std::size_t end, const std::string& more = {}) {
    return R"({"name":")" + name + R"(","begin":)" + std::to_string(begin) + R"(,"end":)" + std::to_string(end) + R"(,"about":{})" + more + "}";
}
Bundle bundle_of(const std::string& text) { return read_bundle(in_memory(text, "a.bundle")); }

std::string written(const Json& contents, const std::vector<BundleEntry>& list) {
    std::string text;
    write_bundle([&](std::span<const std::byte> piece) { text.append(reinterpret_cast<const char*>(piece.data()), piece.size()); }, "x", contents, list);
    return text;
}
std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span{text}); }
std::string_view           text_of(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

}  // namespace

TEST_CASE("io/bundle: what is written is read, in place, each run at its multiple, in a file or in a copy of it") {
    const TempFolder               folder;
    const std::string              small(100, 's'), large(70'000, 'l'), empty, odd = "odd";
    const std::vector<BundleEntry> list{{"a/small", {{"dtype", "F32"}}, bytes_of(small), true}, {"large", Json::object(), bytes_of(large)},
                                        {"empty", Json::object(), bytes_of(empty)}, {"odd", {{"shape", {1, 2}}}, bytes_of(odd)}};
    const Json                     contents{{"eps", 1e-6f}, {"text", "\xc3\xa9"}, {"list", {1, 2}}};
    write_bundle(folder.path() / "x", contents, list);
    CHECK(read_file(folder.path() / "x") == written(contents, list));
    CHECK(is_bundle(folder.path() / "x"));
    for (const FileMode mode : {FileMode::map, FileMode::copy}) {
        const Bundle bundle = read_bundle(MappedFile::open(folder.path() / "x", mode));
        CHECK(bundle.contents == contents);
        CHECK(bundle.contents["eps"].get<float>() == 1e-6f);
        REQUIRE(bundle.entries.size() == list.size());
        const std::byte* const file = bundle.file->bytes().data();
        for (std::size_t i = 0; i < list.size(); ++i) {
            CHECK(bundle.entries[i].name == list[i].name);
            CHECK(bundle.entries[i].about == list[i].about);
            CHECK(text_of(bundle.entries[i].bytes) == text_of(list[i].bytes));
            CHECK(bundle.entries[i].checked == list[i].checked);
            CHECK((bundle.entries[i].bytes.data() - file) % (i == 1 ? 4096 : 64) == 0);
            CHECK(reinterpret_cast<std::uintptr_t>(bundle.entries[i].bytes.data()) % 64 == 0);
        }
    }
    CHECK(bundle_of(written(Json::object(), {})).entries.empty());
    CHECK_FALSE(is_bundle(folder.write("short", "\x89prism")));
    CHECK_FALSE(is_bundle(folder.write("other", "something else")));
    CHECK_THROWS_AS(is_bundle(folder.path() / "missing"), LoadError);
}

TEST_CASE("io/bundle: a beginning that is none, and another version, are refused") {
    const auto refused = [](const std::string& text, std::string_view part) { return says(message<FormatError>([&] { bundle_of(text); }), part); };
    const std::string good = written(Json::object(), {});
    CHECK(refused("", "the beginning"));
    CHECK(refused("hello, world", "no packed file"));
    std::string other = good;
    other[8] = 2;
    CHECK(refused(other, "of version 2, and version 1 can be read: pack it again"));
    CHECK(refused(good.substr(0, 20), "the header length"));
    CHECK(refused(good.substr(0, 16) + u64(~0ULL), "over the limit"));
    CHECK(refused(good.substr(0, 16) + u64(1000), "0 are left"));
    other = good;
    other[30] ^= 1;
    CHECK(refused(other, "does not match its checksum"));
    CHECK(refused(file_of("[]"), "the header needs 'contents', an object"));
    CHECK(refused(file_of("{"), "in the header: not JSON"));
    CHECK(refused(file_of(R"({"contents":[],"entries":[]})"), "'contents', an object"));
    CHECK(refused(file_of(R"({"contents":{},"entries":{}})"), "'entries', a list"));
    CHECK(refused(good.substr(0, 100), "the padding before the data"));
    CHECK(refused(good + "x", "1 bytes follow the last entry"));
}

TEST_CASE("io/bundle: an entry that is wrong is refused by its name") {
    const std::string data(200, 'd');
    const auto        refused = [&](const std::string& list, std::string_view part) {
        const std::string what = message<FormatError>([&] { bundle_of(file_of(entries(list), data)); });
        return says(what, part) && says(what, "a.bundle: byte ");
    };
    CHECK_NOTHROW(bundle_of(file_of(entries(entry("a", 0, 60) + "," + entry("b", 64, 200)), data)));
    CHECK(refused("7", "an entry needs 'name'"));
    CHECK(refused(R"({"name":3})", "an entry needs 'name', a string"));
    CHECK(refused(R"({"name":"a","begin":0,"end":200})", "entry 'a' needs 'about', an object"));
    CHECK(refused(R"({"name":"a","begin":-1,"end":200,"about":{}})", "entry 'a' needs 'begin', a whole number"));
    CHECK(refused(R"({"name":"a","begin":0,"end":1.5,"about":{}})", "entry 'a' needs 'end', a whole number"));
    CHECK(refused(entry("a", 64, 0), "'a' ends at 0, before it begins at 64"));
    CHECK(refused(entry("a", 1, 200), "'a' begins at 1 of the data, where 0 is its place"));
    CHECK(refused(entry("a", 0, 60) + "," + entry("b", 32, 200), "'b' begins at 32 of the data, where 64 is its place"));
    CHECK(refused(entry("a", 0, 60) + "," + entry("b", 128, 200), "'b' begins at 128 of the data, where 64 is its place"));
    CHECK(refused(entry("a", 0, 60) + "," + entry("a", 64, 200), "'a' stands twice"));
    CHECK(refused(entry("a", 0, 201), "'a' ends at 201 of the data, which has 200 bytes"));
    CHECK(refused(R"({"name":"a","begin":0,"end":18446744073709551615,"about":{}})", "'a' ends at 18446744073709551615 of the data"));
    CHECK(refused(R"({"name":"a","begin":18446744073709551552,"end":18446744073709551615,"about":{}})", "where 0 is its place"));
    CHECK(refused(entry("a", 0, 199), "1 bytes follow the last entry"));
    CHECK(refused(entry("a", 0, 200, R"(,"crc32":1)"), "'a' does not match its checksum"));
    CHECK(refused(entry("a", 0, 200, R"(,"crc32":"x")"), "needs 'crc32'"));
}

TEST_CASE("io/bundle: every damaged form is refused or read") {
    const std::string text = "some text", numbers(64, 'n');
    const std::string good = written({{"answer", 42}}, {{"text", Json::object(), bytes_of(text), true}, {"numbers", {{"dtype", "U8"}}, bytes_of(numbers)}});
    std::size_t       read_all = 0;
    damage(good, [&](const std::string& bad) { read_all += bundle_of(bad).entries.size(); });
    CHECK(read_all > 0);  // nobody looks at numbers, nor at padding
}

TEST_CASE("io/bundle: what cannot be written is refused, and nothing appears") {
    const TempFolder  folder;
    const std::string data = "data";
    const auto        refused = [&](const Json& contents, const std::vector<BundleEntry>& list) {
        return message<LoadError>([&] { write_bundle(folder.path() / "x", contents, list); });
    };
    CHECK(says(refused(Json::object(), {{"a", Json::object(), bytes_of(data)}, {"a", Json::object(), bytes_of(data)}}), "'a': expected one entry"));
    CHECK(says(refused(Json::object(), {{"\xff", Json::object(), bytes_of(data)}}), "UTF-8"));
    CHECK(says(refused({{"x", "\xff"}}, {}), "UTF-8"));
    CHECK(std::filesystem::is_empty(folder.path()));
}
