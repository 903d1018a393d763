#include "prism/io/npy.hpp"

#include "support.hpp"

using namespace prism;
using namespace prism::test;

namespace {

std::string npy(const std::string& header, const std::string& data, int major = 1) {
    return std::string("\x93NUMPY") + static_cast<char>(major) + '\0' +
           (major == 1 ? u16(header.size()) : u32(header.size())) + header + data;
}
std::string header(const std::string& descr, const std::string& shape, const std::string& fortran = "False") {
    return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}
std::string six_floats() {
    std::string s;
    for (int i = 0; i < 6; ++i) s += le(static_cast<float>(i));
    return s;
}
TensorInfo npy_of(const std::string& bytes) { return read_npy(in_memory(bytes, "a.npy"), "a"); }
bool       refused(const std::string& bytes, std::string_view part) {
          return says(message<FormatError>([&] { npy_of(bytes); }), part);
}

}  // namespace

TEST_CASE("io/npy: both orders, all versions and every spelling of the header are read") {
    const std::vector<float> rows{0, 1, 2, 3, 4, 5};
    for (const int version : {1, 2, 3}) CHECK(to_floats(npy_of(npy(header("<f4", "(2, 3)"), six_floats(), version))) == rows);
    const TensorInfo columns = npy_of(npy(header("<f4", "(3, 2)", "True"), six_floats()));
    CHECK(columns.shape == std::vector<std::size_t>{3, 2});
    CHECK(to_floats(columns) == std::vector<float>{0, 3, 1, 4, 2, 5});
    CHECK(to_floats(npy_of(npy(R"({"shape":(6,),"descr":"=f4","fortran_order":True})", six_floats()))) == rows);
    CHECK(to_floats(npy_of(npy("  { 'shape' : ( 2L , 3L , ) , 'fortran_order' : False , 'descr' : '<f4' } \n", six_floats()))) ==
          rows);
    CHECK(npy_of(npy(header("<f8", "()"), le(2.5))).elements() == 1);
    CHECK(npy_of(npy(header("|u1", "(0, 7)"), "")).shape == std::vector<std::size_t>{0, 7});
    CHECK(npy_of(npy(header("|b1", "(2,)"), "\x01\x01")).dtype == Dtype::boolean);
    CHECK(npy_of(npy(header("|V2", "(2,)"), "abcd")).dtype == Dtype::bf16);
}

TEST_CASE("io/npy: what is no array of numbers is refused") {
    CHECK(refused("", "magic"));
    CHECK(refused("\x93NUMPX", "no npy file"));
    CHECK(refused(npy("", "", 4), "version 4.0"));
    CHECK(refused(std::string("\x93NUMPY\x01\x00\xff\x00{", 11), "the header needs 255 bytes"));
    CHECK(refused("\x93NUMPY" + std::string("\x02\x00", 2) + u32(0x7fffffff), "over the limit"));
    for (const char* descr : {"|O", "<U4", "|S3", "<M8[ns]", "<c8", "", "f4", "<f3"})
        CHECK(refused(npy(header(descr, "(1,)"), "1234"), "are not read"));
    CHECK(refused(npy(header(">f4", "(6,)"), six_floats()), "big-endian"));
    CHECK(refused(npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "1234"), "structured type"));
    CHECK(refused(npy(header("<f4", "(7,)"), six_floats()), "does not take the 24 bytes"));
    CHECK(refused(npy(header("<f4", "(5,)"), six_floats()), "does not take the 24 bytes"));
    CHECK(refused(npy(header("<f4", "(4294967296, 4294967296, 4294967296)"), six_floats()), "does not take"));
    CHECK(refused(npy(header("<f4", "(99999999999999999999,)"), six_floats()), "too large"));
    CHECK(refused(npy(header("<f4", "(1, 1, 1, 1, 1, 1, 1, 1, 6)"), six_floats()), "more than 8 dimensions"));
    for (const char* shape : {"(6)", "(-6,)", "(6.0,)", "[6]", "(6,", "(,)", "6", "(2 3)"})
        CHECK(refused(npy(header("<f4", shape), six_floats()), "the npy header has"));
    CHECK(refused(npy(header("<f4", "(6,)", "None"), six_floats()), "no 'False'"));
    CHECK(refused(npy("{'descr': '<f4', 'shape': (6,)}", six_floats()), "no descr"));
    CHECK(refused(npy("{'descr': '<f4', 'descr': '<f4', 'shape': (6,), 'fortran_order': False}", six_floats()), "twice"));
    CHECK(refused(npy("{'descr': '<f4', 'x': 1}", six_floats()), "unknown key"));
    CHECK(refused(npy(header("<f4", "(6,)") + "import os", six_floats()), "after the dictionary"));
}

TEST_CASE("io/npy: every damaged form is refused or read") {
    damage(npy(header("<f4", "(2, 3)", "True"), six_floats()), [](const std::string& bytes) { sum({npy_of(bytes)}); });
    const std::string stored = zip({{"x.npy", npy(header("<f4", "(2, 3)"), six_floats())}}),
                      packed = zip({{"x.npy", npy(header("<f4", "(2, 3)"), six_floats()), 8}});
    for (const auto& file : {stored, packed})
        damage(file, [](const std::string& bytes) { sum(read_npz(ZipArchive{in_memory(bytes)})); });
}

TEST_CASE("io/npy: npz entries are read, stored or deflated, and checked") {
    const std::string x = npy(header("<f4", "(2, 3)"), six_floats()),
                      y = npy(header("|u1", "(3000,)"), std::string(3000, 'y'));
    const auto open = [](const std::string& bytes, std::uint64_t limit = 1 << 20) {
        return read_npz(ZipArchive{in_memory(bytes, "a.npz")}, limit);
    };
    const auto tensors = open(zip({{"x.npy", x}, {"layers/y.npy", y, 8}}));
    REQUIRE(tensors.size() == 2);
    CHECK(tensors[0].name == "x");
    CHECK(tensors[1].name == "layers/y");
    CHECK(sum({tensors[1]}) == 3000 * 'y');
    const auto fails = [&](const std::vector<Zipped>& files, std::string_view part, std::uint64_t limit = 1 << 20) {
        return says(message<FormatError>([&] { open(zip(files), limit); }), part);
    };
    CHECK(fails({{"x.npy", x, 0, 0, "", 0, 1}}, "checksum"));
    CHECK(fails({{"y.npy", y, 8, 0, "", 0, 1}}, "checksum"));
    CHECK(fails({{"x.txt", x}}, "no npy file"));
    CHECK(fails({{"y.npy", y, 8}}, "over the limit of 1000", 1000));
    CHECK(fails({{"a.npy", y, 8}, {"b.npy", y, 8}}, "'b.npy' unpacks", 4000));
    CHECK(fails({{"y.npy", y, 8, 0, "", 1}}, "does not unpack"));
    CHECK(fails({{"y.npy", y, 8, 0, "", ~std::uint64_t{0}}}, "unpacks to more"));
    CHECK(fails({{"y.npy", y, 8, 0, "", 1'000'000}}, "cannot unpack"));
}

TEST_CASE("io/npy: what is written is read back, arrays and expressions alike") {
    const TempFolder        folder;
    const auto              file = folder.path() / "x.npy";
    const xt::xarray<float> x{{1, 2, 3}, {4, 5, 6}};
    write_npy(file, x + 1.0f);
    CHECK(read_file(file).size() % 64 == 24);  // the data starts at a multiple of 64
    CHECK(to_xtensor<float, 2>(read_npy(file)) == x + 1.0f);
    CHECK(read_npy(file).name == "x");
    CHECK_THROWS_AS((to_xtensor<float, 3>(read_npy(file))), LoadError);
    CHECK_THROWS_AS(to_xarray<std::int32_t>(read_npy(file)), LoadError);
    CHECK(to_xarray<float>(to_tensor(xt::xarray<std::int64_t>({7, 8}))) == xt::xarray<float>({7, 8}));
    write_npy(file, Dtype::bf16, {}, std::as_bytes(std::span("ab", 2)));
    CHECK(read_npy(file).dtype == Dtype::bf16);
    CHECK_THROWS_AS(write_npy(file, Dtype::f8_e4m3, {2}, std::as_bytes(std::span("ab", 2))), LoadError);
    CHECK_THROWS_AS(write_npy(file, Dtype::f32, {2}, std::as_bytes(std::span("ab", 2))), LoadError);
}
