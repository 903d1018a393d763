// GGUF files made by hand: the bytes of metadata, of tensors' descriptions, and of a whole file.
#pragma once

#include "io/support.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace prism::test::gguf {

inline std::string counted(const std::string& s) { return u64(s.size()) + s; }
inline std::string pair(const std::string& key, unsigned type, const std::string& value) {
    return counted(key) + u32(type) + value;
}
inline std::string info(const std::string& name, const std::vector<std::uint64_t>& dims, unsigned type, std::uint64_t offset) {
    std::string s = counted(name) + u32(dims.size());
    for (const auto d : dims) s += u64(d);
    return s + u32(type) + u64(offset);
}
inline std::string whole_file(const std::vector<std::string>& pairs, const std::vector<std::string>& infos,
                    const std::string& data, std::size_t alignment = 32, std::uint32_t version = 3) {
    std::string s = "GGUF" + u32(version) + u64(infos.size()) + u64(pairs.size());
    for (const auto& p : pairs) s += p;
    for (const auto& i : infos) s += i;
    if (!infos.empty()) s.resize((s.size() + alignment - 1) / alignment * alignment);
    return s + data;
}

inline std::string text_pair(const std::string& key, const std::string& value) { return pair(key, 8, counted(value)); }
inline std::string count_pair(const std::string& key, std::uint64_t value) { return pair(key, 4, u32(value)); }
inline std::string real_pair(const std::string& key, float value) { return pair(key, 6, le(value)); }

/// A file that grows tensor by tensor. Shapes are PyTorch's, the fastest dimension last.
struct Writer {
    std::vector<std::string> pairs, infos{};
    std::string              data{};

    void add(const std::string& name, const std::vector<std::size_t>& shape, unsigned type, const std::string& bytes) {
        infos.push_back(info(name, {shape.rbegin(), shape.rend()}, type, data.size()));
        data += bytes;
        data.resize((data.size() + 31) / 32 * 32);
    }
    std::string file() const { return whole_file(pairs, infos, data); }
};

}  // namespace prism::test::gguf
