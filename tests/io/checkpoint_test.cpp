#include "prism/io/checkpoint.hpp"

#include "support.hpp"
#include "support/cases.hpp"

using namespace prism;
using namespace prism::test;

namespace {

/// A safetensors file with one byte per name.
std::string weights(const std::vector<std::string>& names) {
    std::string header = "{", data;
    for (const auto& name : names) {
        header += (data.empty() ? "\"" : ",\"") + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" +
                  std::to_string(data.size()) + "," + std::to_string(data.size() + 1) + "]}";
        data += static_cast<char>(data.size() + 1);
    }
    header += "}";
    return u64(header.size()) + header + data;
}

std::vector<std::string> names(const Checkpoint& c) {
    std::vector<std::string> all;
    for (const auto& t : c.tensors()) all.push_back(t.name);
    return all;
}

}  // namespace

TEST_CASE("io/checkpoint: both forms of the sharded reference model hold the same tensors") {
    for (const auto& root : reference_roots()) {
        const auto folder = root / "lm" / "llama-bf16-sharded";
        if (!std::filesystem::exists(folder / "model.safetensors.index.json") ||
            !std::filesystem::exists(folder / "pytorch_model.bin"))
            continue;
        INFO(folder.string());
        const Checkpoint sharded = Checkpoint::open(folder),
                         pickled = Checkpoint::open(folder / "pytorch_model.bin", FileMode::copy);
        REQUIRE(!sharded.tensors().empty());
        CHECK(sharded.tensors().size() == pickled.tensors().size());
        CHECK(sharded.bytes() == pickled.bytes());
        CHECK(sharded.bytes() == read_json(folder / "model.safetensors.index.json")["metadata"]["total_size"]);
        for (const auto& t : sharded.tensors()) {
            INFO(t.name);
            REQUIRE(pickled.find(t.name));
            CHECK(t.dtype == Dtype::bf16);
            CHECK(same(t, *pickled.find(t.name)));
        }
    }
}

TEST_CASE("io/checkpoint: every file of weights of the reference opens, by its folder or itself") {
    for (const auto& root : reference_roots()) {
        if (!std::filesystem::is_directory(root)) continue;
        for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
            const auto name = entry.path().filename().string();
            if (name == "model.safetensors" || name == "latest-checkpoint.pt") {
                INFO(entry.path().string());
                CHECK(!Checkpoint::open(entry.path()).tensors().empty());
                CHECK(Checkpoint::open(entry.path().parent_path()).file() == entry.path().string());
            }
        }
    }
}

TEST_CASE("io/checkpoint: a format is recognised by content, not by name") {
    const TempFolder  folder;
    const std::string npy = "\x93NUMPY" + std::string("\x01\x00", 2) + u16(59) +
                            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } \n" + le(1.5f);
    CHECK(names(Checkpoint::open(folder.write("a.bin", weights({"w"})))) == std::vector<std::string>{"w"});
    CHECK(names(Checkpoint::open(folder.write("b.safetensors", zip({{"x.npy", npy}, {"y.npy", npy}})))) ==
          std::vector<std::string>{"x", "y"});
    const std::string gguf = "GGUF" + u32(3) + u64(1) + u64(0) + u64(1) + "g" + u32(1) + u64(1) + u32(0) + u64(0);
    const auto c = Checkpoint::open(folder.write("c", gguf + std::string(32 - gguf.size() % 32, '\0') + le(2.5f)));
    REQUIRE(c.find("g"));
    CHECK(to_floats(*c.find("g")) == std::vector<float>{2.5f});
    for (const std::string& other :
         {std::string("hello"), std::string(), std::string("version https://git-lfs.github.com/spec/v1\n"), npy,
          std::string("\x89PNG\r\n\x1a\n12345")})
        CHECK_THROWS_AS(Checkpoint::open(folder.write("x", other)), FormatError);
    CHECK(says(message([&] { Checkpoint::open(folder.write("x", "version https://git-lfs.github.com/spec/v1\n")); }),
               "git lfs pull"));
}

TEST_CASE("io/checkpoint: a folder gives the best of what it has") {
    const auto picks = [](const std::vector<std::string>& files) {
        const TempFolder folder;
        for (const auto& f : files) folder.write(f, weights({f}));
        return names(Checkpoint::open(folder.path())).at(0);
    };
    CHECK(picks({"pytorch_model.bin", "model.safetensors", "training_args.bin"}) == "model.safetensors");
    CHECK(picks({"pytorch_model.bin", "open_clip_model.safetensors"}) == "pytorch_model.bin");
    CHECK(picks({"open_clip_pytorch_model.bin", "open_clip_model.safetensors"}) == "open_clip_model.safetensors");
    CHECK(picks({"one.safetensors", "x.pt", "y.bin"}) == "one.safetensors");
    CHECK(picks({"one.pth", "config.json"}) == "one.pth");
    const TempFolder folder;
    CHECK(says(message<LoadError>([&] { Checkpoint::open(folder.path()); }), "no file of weights"));
    folder.write("a.pt", "");
    folder.write("b.pt", "");
    CHECK(says(message<LoadError>([&] { Checkpoint::open(folder.path()); }), "2 files of weights"));
    CHECK_THROWS_AS(Checkpoint::open(folder.path() / "missing"), LoadError);
}

TEST_CASE("io/checkpoint: shards are joined, and an index that does not fit them is a LoadError") {
    const TempFolder folder;
    folder.write("1.safetensors", weights({"a", "b"}));
    folder.write("2.safetensors", weights({"c"}));
    const auto open = [&](const std::string& index) {
        return Checkpoint::open(folder.write("model.safetensors.index.json", index).parent_path());
    };
    CHECK(
        names(open(R"({"metadata":{}, "weight_map":{"c":"2.safetensors","a":"1.safetensors","b":"1.safetensors"}})")) ==
        std::vector<std::string>{"a", "b", "c"});

    const auto refused = [&](const std::string& index, std::string_view part) {
        return says(message<LoadError>([&] { open(index); }), part);
    };
    CHECK(refused("[]", "no index of shards"));
    CHECK(refused("{", "not JSON"));
    CHECK(refused("{}", "no index of shards"));
    CHECK(refused(R"({"weight_map":[]})", "no index of shards"));
    CHECK(refused(R"({"weight_map":{"a":"1.safetensors","a":"1.safetensors"}})", "twice"));
    for (const char* path : {"\"../1.safetensors\"", "\"/etc/passwd\"", "\"x/1.safetensors\"", "\"..\"", "\"\"",
                             "\"a\\\\b\"", "\"a\\u0000\"", "7", "null"})
        CHECK(refused("{\"weight_map\":{\"a\":" + std::string(path) + "}}", "tensor 'a': expected the name of a file"));
    CHECK(refused(R"({"weight_map":{"a":"3.safetensors"}})", "3.safetensors: cannot be opened"));
    CHECK(refused(
        R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors","x":"2.safetensors","c":"2.safetensors","y":"2.safetensors"}})",
        "2.safetensors lacks 'x', 'y'"));
    CHECK(refused(R"({"weight_map":{"a":"1.safetensors","c":"2.safetensors"}})",
                  "1.safetensors has, and the index does not name, 'b'"));
    folder.write("2.safetensors", weights({"a"}));
    CHECK(refused(R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}})",
                  "tensor 'a': expected one tensor"));
    damage(R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors"}})",
           [&](const std::string& index) { open(index); });
}

TEST_CASE("io/checkpoint: parts are put below a prefix and taken from one") {
    const TempFolder folder;
    const auto       a = Checkpoint::open(folder.write("a", weights({"x.w", "x.b", "xy.w"}))),
               b = Checkpoint::open(folder.write("b", weights({"w"})));
    CHECK(names(a.below("x")) == std::vector<std::string>{"w", "b"});
    CHECK(a.below("none").tensors().empty());
    CHECK(a.below("x").file() == a.file());

    Checkpoint both;
    both.add(a);
    both.add(b, "y.z");
    CHECK(names(both) == std::vector<std::string>{"x.w", "x.b", "xy.w", "y.z.w"});
    CHECK(both.find("y.z.w")->file == b.file());
    CHECK(both.find("w") == nullptr);
    CHECK(both.bytes() == 4);
    CHECK(says(message<LoadError>([&] { both.add(b, "x"); }), "tensor 'x.w'"));
    CHECK(both.tensors().size() == 4);
    both.add(both, "again");
    CHECK(both.tensors().size() == 8);
    CHECK_THROWS_AS(Checkpoint("made", {a.tensors()[0], a.tensors()[0]}), LoadError);
}

TEST_CASE("io/checkpoint: tensors outlive the checkpoint, and a copy outlives its file") {
    const TempFolder folder;
    const auto       file = folder.write("a", weights({"w"}));
    const TensorInfo w = *Checkpoint::open(file).find("w"), copy = *Checkpoint::open(file, FileMode::copy).find("w");
    CHECK(to_floats(w) == std::vector<float>{1});
    std::filesystem::resize_file(file, 0);
    CHECK(to_floats(copy) == std::vector<float>{1});
}
