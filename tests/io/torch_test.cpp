#include "prism/io/torch.hpp"

#include "prism/io/safetensors.hpp"
#include "support.hpp"
#include "support/cases.hpp"

#include <map>

using namespace prism;
using namespace prism::test;

namespace {

// Pickles by hand, in the words of pickletools.
const std::string proto = "\x80\x02", stop = ".", none = "N", dict = "}", list = "]", mark = "(", tuple = "t",
                  empty_tuple = ")", reduce = "R", set_items = "u", set_item = "s", persistent_id = "Q", build = "b";
std::string pickled(std::string_view s) { return "X" + u32(s.size()) + std::string(s); }
std::string integer(std::int64_t n) { return "\x8a\x08" + le(n); }
std::string integers(const std::vector<std::int64_t>& values) {
    std::string s = mark;
    for (const auto n : values) s += integer(n);
    return s + tuple;
}
std::string global(const std::string& module, const std::string& name) { return "c" + module + "\n" + name + "\n"; }
std::string put(int index) { return std::string("q") + static_cast<char>(index); }
std::string get(int index) { return std::string("h") + static_cast<char>(index); }

std::string storage(const std::string& type = "FloatStorage", const std::string& key = "0", std::int64_t n = 6) {
    return mark + pickled("storage") + global(type == "UntypedStorage" ? "torch.storage" : "torch", type) + pickled(key) +
           pickled("cpu") + integer(n) + tuple + persistent_id;
}
std::string arguments(const std::string& storage, std::int64_t offset, const std::vector<std::int64_t>& size,
                      const std::vector<std::int64_t>& stride) {
    return mark + storage + integer(offset) + integers(size) + integers(stride) + "\x89" +
           global("collections", "OrderedDict") + empty_tuple + reduce + tuple;
}
std::string tensor(const std::string& storage, std::int64_t offset, const std::vector<std::int64_t>& size,
                   const std::vector<std::int64_t>& stride) {
    return global("torch._utils", "_rebuild_tensor_v2") + arguments(storage, offset, size, stride) + reduce;
}
const std::string good_tensor = tensor(storage(), 0, {2, 3}, {3, 1});
std::string       item(const std::string& value, std::string_view key = "x") {
          return proto + dict + mark + pickled(key) + value + set_items + stop;
}

std::string floats(std::size_t n) {
    std::string s;
    for (std::size_t i = 0; i < n; ++i) s += le(static_cast<float>(i));
    return s;
}
/// A file of torch.save with this pickle and one storage of six floats.
std::string saved(const std::string& pickle, const std::vector<Zipped>& more = {}) {
    std::vector<Zipped> files{{"top/data.pkl", pickle}, {"top/byteorder", "little"}, {"top/data/0", floats(6)}};
    files.insert(files.end(), more.begin(), more.end());
    files.push_back({"top/version", "3\n"});
    return zip(files);
}
std::vector<TensorInfo> tensors_of(const std::string& bytes) { return read_torch(in_memory(bytes, "a.pt")); }
bool                    refused_torch(const std::string& bytes, std::string_view part) {
                       return says(message<FormatError>([&] { tensors_of(bytes); }), part);
}

const std::string legacy_magic{detail::torch_legacy_magic};
std::string       legacy(const std::string& object, const std::string& keys, const std::string& data,
                         const std::string& little = "\x88") {
          return legacy_magic + proto + "M" + u16(1001) + stop + proto + dict + mark + pickled("little_endian") + little +
                 set_items + stop + object + proto + list + mark + keys + "e" + stop + data;
}

std::map<std::string, TensorInfo> by_name(const std::vector<TensorInfo>& tensors) {
    std::map<std::string, TensorInfo> named;
    for (const auto& t : tensors) named[t.name] = t;
    return named;
}

}  // namespace

TEST_CASE("io/torch: all encodings of the reference hold the same tensors") {
    for (const auto& root : reference_roots()) {
        const auto folder = root / "formats";
        if (!std::filesystem::exists(folder / "expected.safetensors")) continue;
        const auto expected = by_name(read_safetensors(folder / "expected.safetensors").tensors);
        struct Encoding {
            std::string file, prefix;
            std::size_t n_tensors;
        };
        for (const Encoding& encoding :
             {Encoding{"state_dict.pt", "", 13}, Encoding{"nested.pt", "model.part.", 13},
              Encoding{"parameters.pt", "", 10}, Encoding{"protocol4.pt", "", 13}, Encoding{"legacy.pt", "", 13}})
            for (const auto mode : {FileMode::map, FileMode::copy}) {
                if (!std::filesystem::exists(folder / encoding.file)) continue;
                INFO(root.string(), " ", encoding.file);
                const auto tensors = read_torch(folder / encoding.file, mode);
                CHECK(tensors.size() == encoding.n_tensors);
                for (const auto& t : tensors) {
                    INFO(t.name);
                    REQUIRE(t.name.starts_with(encoding.prefix));
                    CHECK(same(t, expected.at(t.name.substr(encoding.prefix.size()))));
                    CHECK(t.stride.empty() ==
                          (t.name.find("transposed") == t.name.npos && t.name.find("column") == t.name.npos &&
                           t.name.find("every_second_row") == t.name.npos));
                }
            }
        if (std::filesystem::exists(folder / "tagged.pt")) CHECK(read_torch(folder / "tagged.pt").at(0).name == "f32");
        if (std::filesystem::exists(folder / "whole_module_must_be_refused.pt"))
            CHECK(says(message<FormatError>([&] { read_torch(folder / "whole_module_must_be_refused.pt"); }),
                       "'torch.nn.modules.container Sequential'"));
    }
}

TEST_CASE("io/torch: every damaged form of every reference encoding is refused or read") {
    for (const auto& root : reference_roots()) {
        if (!std::filesystem::is_directory(root / "formats")) continue;
        for (const char* file : {"state_dict.pt", "legacy.pt", "tagged.pt", "protocol4.pt"})
            if (std::filesystem::exists(root / "formats" / file))
                damage(read_file(root / "formats" / file), [](const std::string& bytes) { sum(tensors_of(bytes)); });
        break;  // one root takes long enough
    }
}

TEST_CASE("io/torch: names join keys and indices, and values that are no tensors are dropped") {
    const std::string other = mark + integer(7) + pickled("s") + none + "\x88" + "G" + std::string(8, '\0') + tuple;
    const std::string pickle = proto + dict + mark + pickled("a") +
                               (dict + mark + integer(5) + good_tensor + pickled("note") + other + set_items) + pickled("l") +
                               (list + mark + none + good_tensor + "e") + pickled("epoch") + integer(3) + set_items + stop;
    const auto tensors = tensors_of(saved(pickle));
    REQUIRE(tensors.size() == 2);
    CHECK(tensors[0].name == "a.5");
    CHECK(tensors[1].name == "l.1");
    CHECK(to_floats(tensors[0]) == std::vector<float>{0, 1, 2, 3, 4, 5});
    CHECK(tensors_of(saved(proto + good_tensor + stop)).at(0).name == "");
    CHECK(tensors_of(saved(proto + none + stop)).empty());
    CHECK(tensors_of(saved(proto + "\x8f" + mark + good_tensor + "\x90" + stop)).at(0).name == "0");
}

TEST_CASE("io/torch: wrapped tensors, sizes, devices, ordered dicts of pairs and attributes of dicts are understood") {
    const std::string args = arguments(storage(), 0, {6}, {1});
    const auto        one = [](const std::string& value) { return tensors_of(saved(item(value))).at(0); };
    CHECK(one(global("torch._utils", "_rebuild_parameter") + mark + good_tensor + "\x88" + dict + tuple + reduce)
              .elements() == 6);
    CHECK(one(global("torch.nn.parameter", "Parameter") + mark + good_tensor + "\x88" + tuple + reduce).elements() ==
          6);
    const std::string rebuild = global("torch._tensor", "_rebuild_from_type_v2"),
                      v2 = global("torch._utils", "_rebuild_tensor_v2"), type = global("torch", "Tensor");
    CHECK(one(rebuild + mark + v2 + type + args + dict + tuple + reduce).elements() == 6);
    CHECK(one(rebuild + mark + rebuild + type + mark + v2 + type + args + dict + tuple + dict + tuple + reduce)
              .elements() == 6);
    const std::string v3 = global("torch._utils", "_rebuild_tensor_v3") + mark + storage("UntypedStorage", "0", 24) +
                           integer(2) + integers({3}) + integers({1}) + "\x89" + dict;
    CHECK(one(v3 + global("torch", "bfloat16") + tuple + reduce).dtype == Dtype::bf16);
    CHECK(refused_torch(saved(item(v3 + global("torch", "complex64") + tuple + reduce)), "tensor 'x' has an element type"));
    const std::string pairs =
        global("collections", "OrderedDict") + list + mark + pickled("k") + good_tensor + "\x86" + "e" + "\x85" + reduce;
    CHECK(one(pairs).name == "x.k");
    CHECK(tensors_of(saved(item(global("torch", "Size") + integers({2, 3}) + "\x85" + reduce))).empty());
    CHECK(tensors_of(saved(item(global("torch", "device") + pickled("cpu") + "\x85" + reduce))).empty());
    CHECK(tensors_of(saved(proto + dict + dict + build + stop)).empty());
}

TEST_CASE("io/torch: a global outside the list is named with its offset, and never called") {
    for (const auto& pair : std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                                             {"builtins", "eval"},
                                                                             {"__builtin__", "getattr"},
                                                                             {"torch", "ComplexFloatStorage"},
                                                                             {"torch", "load"},
                                                                             {"torch.nn.modules.linear", "Linear"}}) {
        const std::string module = pair.first, name = pair.second;
        const std::string what = message<FormatError>(
            [&] { tensors_of(saved(proto + global(module, name) + pickled("touch x") + "\x85" + reduce + stop)); });
        CHECK(says(what, "'" + module + " " + name + "'"));
        CHECK(says(what, "a.pt: byte 44:"));  // 30 + the name's 12 bytes + PROTO
        CHECK(refused_torch(saved("\x80\x04\x8c" + std::string(1, static_cast<char>(module.size())) + module + "\x8c" +
                            std::string(1, static_cast<char>(name.size())) + name + "\x93" + stop),
                      "'" + module + " " + name + "'"));
    }
}

TEST_CASE("io/torch: opcodes that no state dict uses are named") {
    for (const auto& [code, name] : std::vector<std::pair<std::string, std::string>>{{"i", "INST (0x69)"},
                                                                                     {"o", "OBJ (0x6f)"},
                                                                                     {"0", "POP (0x30)"},
                                                                                     {"\x82", "EXT1 (0x82)"},
                                                                                     {"\x92", "NEWOBJ_EX (0x92)"},
                                                                                     {"I", "INT (0x49)"},
                                                                                     {"\xff", "0xff"}})
        CHECK(refused_torch(saved(proto + code + stop), "the opcode " + name));
    CHECK(refused_torch(saved("\x80\x05" + none + stop), "protocol 5"));
    CHECK(refused_torch(saved("\x80\x01" + none + stop), "protocol 1"));
    CHECK(refused_torch(saved(none + stop), "no pickle"));
}

TEST_CASE("io/torch: misuse of the stack, the marks and the memo is refused") {
    for (const std::string& body :
         {std::string(), reduce, tuple, std::string("\x86") + none, dict + set_item, mark + none, none + none,
          set_items, std::string("e"), put(0), mark + put(0), mark + none + set_items, none + mark + persistent_id,
          dict + build, mark + std::string("\x85")})
        CHECK(says(message<FormatError>([&] { tensors_of(saved(proto + body + stop)); }), "a.pt: byte"));
    CHECK(refused_torch(saved(proto + get(3) + stop), "the memo has no entry 3"));
    CHECK(refused_torch(saved(proto + "j" + u32(0xffffffff) + stop), "the memo has no entry 4294967295"));
    CHECK(refused_torch(saved(proto + none + "r" + u32(0xffffffff)), "an opcode needs 1 bytes"));
    CHECK(refused_torch(saved(proto + dict + list + none + set_item + stop), "a key that is neither"));
    CHECK(refused_torch(saved(proto + dict + mark + none + set_items + stop), "without a value"));
    CHECK(refused_torch(saved(proto + list + pickled("k") + none + set_item + stop), "no dict"));
    CHECK(refused_torch(saved(proto + dict + none + "a" + stop), "no list"));
    CHECK(refused_torch(saved(proto + list + dict + build + stop), "BUILD"));
    CHECK(refused_torch(saved(proto + none + empty_tuple + reduce + stop), "no global"));
    CHECK(refused_torch(saved(proto + global("torch", "Size") + none + reduce + stop), "no tuple"));
    CHECK(refused_torch(saved(proto + global("torch", "FloatStorage") + empty_tuple + reduce + stop), "is not called"));
    CHECK(refused_torch(saved(proto + none + none + "\x93" + stop), "STACK_GLOBAL"));
    CHECK(refused_torch(saved(proto + "ctorch"), "does not end"));
    CHECK(refused_torch(saved(proto + "X" + u32(0xffffffff) + "abc"), "needs 4294967295 bytes"));
    CHECK(refused_torch(saved(proto + "\x8a\x09" + std::string(9, 'x') + stop), "an integer of 9 bytes"));
    CHECK(refused_torch(saved(proto + "\x95" + u64(~0ULL) + none + stop), "FRAME"));
    CHECK(refused_torch(saved(proto + pickled("storage") + persistent_id + stop), "persistent id"));
}

TEST_CASE("io/torch: endless nesting, self-reference and shared doubling end in an error") {
    CHECK(refused_torch(saved(proto + list + put(0) + get(0) + "a" + stop), "contains itself"));
    CHECK(refused_torch(saved(proto + dict + put(0) + pickled("k") + get(0) + set_item + stop), "contains itself"));
    std::string nested = proto;
    for (int i = 0; i < 100'000; ++i) nested += list;
    for (int i = 0; i < 99'999; ++i) nested += "a";
    CHECK(refused_torch(saved(nested + stop), "nested deeper than 64"));
    std::string tuples = proto + none;
    for (int i = 0; i < 100'000; ++i) tuples += "\x85";
    CHECK(refused_torch(saved(tuples + stop), "nested deeper than 64"));
    std::string doubling = proto + good_tensor + put(0);  // each level holds the one before it twice: 2^60 names
    for (int i = 0; i < 60; ++i) doubling += get(i) + "\x86" + put(i + 1);
    CHECK(refused_torch(saved(doubling + stop), "share their contents too often"));

    std::string values = proto + list + list + mark;  // a list of many values that are none, many times
    for (int i = 0; i < 50'000; ++i) values += none;
    values += "e" + put(0) + "a" + mark;
    for (int i = 0; i < 50'000; ++i) values += get(0);
    CHECK(refused_torch(saved(values + "e" + stop), "share their contents too often"));
    std::string pairs = proto + global("collections", "OrderedDict") + put(0) + list + put(1) + mark + integer(1) + integer(1) + "\x86" + put(2);
    for (int i = 0; i < 50'000; ++i) pairs += get(2);
    pairs += "e\x85" + put(3) + list + mark;
    for (int i = 0; i < 20'000; ++i) pairs += get(0) + get(3) + reduce;
    CHECK(refused_torch(saved(pairs + "e" + stop), "share their contents too often"));
}

TEST_CASE("io/torch: a tensor that leaves its storage is refused by its name") {
    const auto wrong = [](std::int64_t offset, const std::vector<std::int64_t>& size,
                          const std::vector<std::int64_t>& stride, std::string_view part) {
        const std::string what =
            message<FormatError>([&] { tensors_of(saved(item(tensor(storage(), offset, size, stride)))); });
        return says(what, "tensor 'x'") && says(what, part);
    };
    constexpr std::int64_t big = std::int64_t{1} << 62;
    CHECK(wrong(1, {2, 3}, {3, 1}, "leaves its storage of 6 elements"));
    CHECK(wrong(-1, {2, 3}, {3, 1}, "leaves its storage"));
    CHECK(wrong(0, {2, 3}, {4, 1}, "leaves its storage"));
    CHECK(wrong(6, {}, {}, "leaves its storage"));
    CHECK(wrong(0, {-2, 3}, {3, 1}, "no whole number"));
    CHECK(wrong(0, {2, 3}, {-3, 1}, "no whole number"));
    CHECK(wrong(0, {2, 3}, {3}, "2 extents and 1 strides"));
    CHECK(wrong(0, {big, 8}, {0, 0}, "too large"));
    CHECK(wrong(0, {3}, {big}, "leaves its storage"));
    CHECK(wrong(0, {5}, {big}, "leaves its storage"));
    CHECK(wrong(big, {5}, {big}, "leaves its storage"));
    CHECK(wrong(0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}, "9 dimensions"));
    CHECK(wrong(0, {1'000'000, 1'000'000}, {0, 0}, "repeats its storage"));
    CHECK(tensors_of(saved(item(tensor(storage(), 0, {2, 3, 100}, {3, 1, 0})))).at(0).stride.size() == 3);
    CHECK(tensors_of(saved(item(tensor(storage(), 99, {0, 5}, {5, 1})))).at(0).elements() == 0);
    CHECK(to_floats(tensors_of(saved(item(tensor(storage(), 5, {}, {})))).at(0)) == std::vector<float>{5});
    CHECK(to_floats(tensors_of(saved(item(tensor(storage(), 1, {2, 2}, {1, 2})))).at(0)) == std::vector<float>{1, 3, 2, 4});
    CHECK(tensors_of(saved(item(tensor(storage(), 0, {1, 6}, {77, 1})))).at(0).stride.empty());
}

TEST_CASE("io/torch: a storage that is missing, too short or of another kind is refused") {
    CHECK(refused_torch(saved(item(tensor(storage("FloatStorage", "7"), 0, {6}, {1}))),
                  "tensor 'x' lies in the storage '7', which the file lacks"));
    CHECK(refused_torch(saved(item(tensor(storage("FloatStorage", "0", 7), 0, {6}, {1}))), "of which the file has 24 bytes"));
    CHECK(refused_torch(saved(item(tensor(storage("DoubleStorage"), 0, {6}, {1}))), "of which the file has 24 bytes"));
    CHECK(refused_torch(saved(item(tensor(storage("FloatStorage", "0", std::int64_t{1} << 62), 0, {6}, {1}))),
                  "of which the file has"));
    CHECK(refused_torch(saved(item(tensor(storage("FloatStorage", "0", -1), 0, {6}, {1}))), "-1 elements"));
    CHECK(refused_torch(saved(item(tensor(storage("FloatStorage", "../x"), 0, {6}, {1}))), "is no number"));
    CHECK(refused_torch(saved(item(tensor(storage("float32"), 0, {6}, {1}))), "no storage"));
    CHECK(refused_torch(saved(item(tensor(storage("UntypedStorage", "0", 24), 0, {6}, {1}))), "element type"));
    CHECK(refused_torch(saved(proto + mark + good_tensor + tensor(storage("IntStorage"), 0, {6}, {1}) + tuple + stop),
                  "described in two ways"));
    CHECK(refused_torch(saved(item(tensor(none, 0, {6}, {1}))), "arguments that do not fit"));
    CHECK(refused_torch(saved(proto + dict + mark + pickled("a.b") + good_tensor + pickled("a") + dict + pickled("b") + good_tensor +
                        set_item + set_items + stop),
                  "is there twice"));
}

TEST_CASE("io/torch: an archive that lies is refused") {
    const std::string pickle = item(good_tensor);
    CHECK(tensors_of(saved(pickle)).size() == 1);
    CHECK(
        refused_torch(zip({{"top/data.pkl", pickle}, {"top/byteorder", "big"}, {"top/data/0", floats(6)}}), "another order"));
    CHECK(refused_torch(zip({{"top/x", ""}}), "no data.pkl"));
    CHECK(refused_torch(saved(pickle, {{"top/constants.pkl", ""}}), "TorchScript"));
    CHECK(refused_torch(saved(pickle, {{"top/code/model.py", ""}}), "TorchScript"));
    CHECK(refused_torch(saved(pickle, {{"top/data/0", ""}}), "is there twice"));
    for (const char* name : {"../x", "/x", "top/../../x", "top\\x", "top/.."})
        CHECK(refused_torch(saved(pickle, {{name, ""}}), "could leave its folder"));
    CHECK(refused_torch(saved(pickle, {{std::string("a\0b", 3), ""}}), "zero byte"));
    CHECK(refused_torch(zip({{"top/data.pkl", pickle, 8}, {"top/data/0", floats(6)}}), "is compressed"));
    CHECK(refused_torch(zip({{"top/data.pkl", pickle, 12}, {"top/data/0", floats(6)}}), "packed by method 12"));
    CHECK(refused_torch(zip({{"top/data.pkl", pickle, 0, 0x0809}, {"top/data/0", floats(6)}}), "encrypted"));
    CHECK(refused_torch(saved(pickle, {{"top/x", "", 0, 0, "top/y"}}), "another name in its local header"));
    CHECK(refused_torch(saved(pickle, {{"top/x", "", 0, 0, "", 1}}), "and said to have 1"));
    CHECK(refused_torch(saved(pickle, {{"top/x", "", 0, 0, "", 0, 0, 1'000'000}}), "cut off"));
    CHECK(refused_torch(saved(pickle, {{"top/x", "", 0, 0, "", 0, 0, 1}}), "no local header"));
    CHECK(refused_torch(zip({{"top/data.pkl", pickle, 0, 0, "", 0, 1}, {"top/data/0", floats(6)}}), "checksum"));
    CHECK(refused_torch(saved(pickle) + "x", "directory is missing"));
    CHECK(refused_torch(std::string(257, 'x') + "ustar", "tar file"));
}

TEST_CASE("io/torch: sizes and offsets beyond 32 bits are taken from the zip64 field") {
    const auto archive = [](Zipped data) {
        data.zip64 = true;
        return zip({{"top/data.pkl", item(good_tensor)}, data});
    };
    CHECK(to_floats(tensors_of(archive({"top/data/0", floats(6)})).at(0)) == std::vector<float>{0, 1, 2, 3, 4, 5});
    CHECK(refused_torch(archive({"top/data/0", floats(6), 0, 0, "", 0, 0, std::uint64_t{1} << 63}), "cut off"));
    CHECK(refused_torch(archive({"top/data/0", floats(6), 0, 0, "", std::uint64_t{1} << 40}), "and said to have"));
    damage(archive({"top/data/0", floats(6)}), [](const std::string& bytes) { sum(tensors_of(bytes)); });
}

TEST_CASE("io/torch: the old format is read, windows into storages included") {
    const auto old_storage = [](const std::string& view) {
        return mark + pickled("storage") + global("torch", "FloatStorage") + pickled("93") + pickled("cpu") + integer(6) + view +
               tuple + persistent_id;
    };
    const std::string window = mark + pickled("94") + integer(2) + integer(3) + tuple;
    const std::string pickle = proto + dict + mark + pickled("whole") + tensor(old_storage(none), 0, {6}, {1}) +
                               pickled("part") + tensor(old_storage(window), 1, {2}, {1}) + set_items + stop;
    const std::string data = u64(6) + floats(6);
    const auto        tensors = tensors_of(legacy(pickle, pickled("93"), data));
    REQUIRE(tensors.size() == 2);
    CHECK(to_floats(tensors[1]) == std::vector<float>{3, 4});
    const std::string outside =
        proto + dict + mark + pickled("x") + tensor(old_storage(window), 2, {2}, {1}) + set_items + stop;
    CHECK(refused_torch(legacy(outside, pickled("93"), data), "leaves its storage of 3"));
    const std::string bad_window = mark + pickled("94") + integer(4) + integer(3) + tuple;
    CHECK(refused_torch(legacy(proto + tensor(old_storage(bad_window), 0, {2}, {1}) + stop, pickled("93"), data),
                  "a view of elements 4 + 3"));
    CHECK(refused_torch(legacy(pickle, pickled("93"), data, "\x89"), "big-endian"));
    CHECK(refused_torch(legacy(pickle, pickled("93"), u64(7) + floats(7)), "has 7 elements, where 6 are stated"));
    CHECK(refused_torch(legacy(pickle, pickled("93"), data + "x"), "1 bytes follow"));
    CHECK(refused_torch(legacy(pickle, pickled("95"), data), "belongs to no tensor"));
    CHECK(refused_torch(legacy(pickle, "", ""), "which the file lacks"));
    CHECK(refused_torch(legacy(pickle, pickled("93") + pickled("93"), data + data), "is there twice"));
    CHECK(refused_torch(legacy_magic + proto + "M" + u16(1000) + stop, "protocol version"));
    CHECK(refused_torch("\x80\x02\x8a\x0a" + std::string(11, 'x'), "did not write this"));
    damage(legacy(pickle, pickled("93"), data), [](const std::string& bytes) { sum(tensors_of(bytes)); });
}
