// Files as torch.save writes them, read back by the library's own reader. That PyTorch reads them too (2.2 and 2.15, with
// weights_only=True, also a storage of over 4 GiB) was checked by hand.
#include "io/support.hpp"

#include "prism/io/torch.hpp"
#include "prism/io/torch_writer.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

using namespace prism;
using prism::test::TempFolder;

namespace {

TensorInfo tensor_of(Dtype dtype, std::vector<std::size_t> shape, const void* data) {
    return {"made", dtype, std::move(shape), {}, static_cast<const std::byte*>(data), nullptr, "made by the test"};
}

}  // namespace

TEST_CASE("io/torch_writer: what is written is read back, tied tensors once and every storage aligned") {
    const TempFolder                folder;
    const auto                      path = folder.path() / "step-000012-epoch-00-loss=1.2500.pt";
    const std::vector<float>        a{1, 2, 3, 4, 5, 6};
    const std::vector<std::int64_t> b{7, std::int64_t{1} << 40};
    const std::vector<bf16_t>       h{bf16_t{0.5f}};
    TensorInfo                      turned = tensor_of(Dtype::f32, {3, 2}, a.data());
    turned.stride = {1, 3};
    write_torch(path, {{"model", TorchDict{{"projector", TorchDict{{"projector.0.weight", tensor_of(Dtype::f32, {2, 3}, a.data())}, {"scalar", tensor_of(Dtype::bf16, {}, h.data())}}},
                                           {"llm_backbone", TorchDict{{"ids", tensor_of(Dtype::i64, {2}, b.data())}, {"tied", tensor_of(Dtype::f32, {6}, a.data())}, {"turned", turned}, {"none", tensor_of(Dtype::f32, {0, 4}, nullptr)}}}}},
                       {"step", 12}, {"long", std::int64_t{1} << 40}, {"loss", -1.25}, {"name", "x"}, TorchItem{"nothing"}, {"flag", true}});
    const auto found = read_torch(path);
    REQUIRE(found.size() == 6);
    CHECK(found[0].name == "model.projector.projector.0.weight");
    CHECK((found[0].shape == std::vector<std::size_t>{2, 3}));
    CHECK(to_floats(found[0]) == a);
    CHECK(found[1].shape.empty());
    CHECK(to_floats(found[1])[0] == 0.5f);
    CHECK(to_integers(found[2]) == b);
    CHECK(found[3].data == found[0].data);
    CHECK(to_floats(found[4]) == std::vector<float>{1, 4, 2, 5, 3, 6});
    CHECK(found[5].elements() == 0);

    const auto       file = MappedFile::open(path);
    const ZipArchive zip{file};
    for (const ZipEntry& entry : zip.entries()) {
        CHECK(entry.name.starts_with("step-000012-epoch-00-loss=1.2500/"));
        CHECK(entry.offset % 64 == 0);
        CHECK(zip.content(entry, 1 << 20)->bytes().size() == entry.bytes);  // has its checksum
    }
    CHECK(zip.find("step-000012-epoch-00-loss=1.2500/.data/serialization_id")->bytes == 40);

    // The same values give the same bytes.
    write_torch(folder.path() / "x.pt", {{"a", tensor_of(Dtype::f32, {6}, a.data())}});
    const std::string first = read_file(folder.path() / "x.pt");
    write_torch(folder.path() / "x.pt", {{"a", tensor_of(Dtype::f32, {6}, a.data())}});
    CHECK(read_file(folder.path() / "x.pt") == first);
}

TEST_CASE("io/torch_writer: what PyTorch cannot hold is refused, and the old file stays") {
    const TempFolder         folder;
    const auto               path = folder.path() / "x.pt";
    const std::vector<float> a{1};
    write_torch(path, {{"a", tensor_of(Dtype::f32, {1}, a.data())}});
    const std::string before = read_file(path);
    CHECK_THROWS_AS(write_torch(path, {{"a", tensor_of(Dtype::q8, {1}, a.data())}}), LoadError);
    CHECK_THROWS_AS(write_torch(path, {{"a", 1}, {"a", 2}}), LoadError);
    TensorInfo panels = tensor_of(Dtype::f32, {1}, a.data());
    panels.panels = true;
    CHECK_THROWS_AS(write_torch(path, {{"a", panels}}), LoadError);
    CHECK(read_file(path) == before);
    CHECK_THROWS_AS(write_torch(folder.path() / "nowhere/x.pt", {}), LoadError);
    std::size_t n_files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) n_files += entry.exists();
    CHECK(n_files == 1);
}
