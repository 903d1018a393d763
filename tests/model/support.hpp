// Folders of models made by tests out of the reference's: copied, edited, their tensors renamed.
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/io/json.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/model/pretrained.hpp"
#include "support/cases.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include <unistd.h>

namespace prism::test {

/// An empty folder, removed with all that is in it.
class TempFolder {
public:
    TempFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "prism-model-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    ~TempFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path        operator/(const std::string& name) const { return path_ / name; }

    /// A copy of a folder of the committed reference cases, such as "vlm/openvla-hf".
    void copy(const std::string& reference, const std::string& to = ".") const {
        const auto from = std::filesystem::path(PRISM_TEST_DATA) / "reference" / reference;
        std::filesystem::create_directories(path_ / to);
        for (const auto& entry : std::filesystem::recursive_directory_iterator(from)) {
            const auto target = path_ / to / entry.path().lexically_relative(from);
            if (entry.is_directory()) std::filesystem::create_directories(target);
            else std::filesystem::copy_file(std::filesystem::canonical(entry.path()), target);
        }
    }
    void write(const std::string& name, const Json& json) const {
        std::filesystem::create_directories((path_ / name).parent_path());
        std::ofstream(path_ / name) << json.dump();
    }
    void write_bytes(const std::string& name, const std::string& bytes) const { std::ofstream(path_ / name, std::ios::binary) << bytes; }
    void edit(const std::string& name, const std::function<void(Json&)>& change) const {
        Json json = read_json(path_ / name);
        change(json);
        write(name, json);
    }
    void write(const std::string& name, const std::vector<TensorInfo>& tensors) const {
        std::filesystem::create_directories((path_ / name).parent_path());
        std::vector<TensorInfo> dense;
        std::vector<TensorData> data;
        for (const TensorInfo& t : tensors) dense.push_back(contiguous(t));
        for (const TensorInfo& t : dense) data.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes()}});
        write_safetensors(path_ / name, data);
    }

private:
    std::filesystem::path path_;
};

/// A folder of the committed reference cases.
inline std::filesystem::path reference(const std::string& name) { return std::filesystem::path(PRISM_TEST_DATA) / "reference" / name; }

/// Patch features of pixels [n, 3, S, S].
inline std::vector<float> features(Cpu& be, const Vit<Cpu>& vit, const std::vector<float>& pixels) {
    const VitConfig&     c = vit.config;
    const std::size_t    n = pixels.size() / (3 * c.image_size * c.image_size);
    const PixelView<Cpu> view{pixels.data(), {n, 3, c.image_size, c.image_size}};
    Workspace<Cpu>       ws{be, dry_run([&, twin = dry_twin(vit)](Dry& dry, Workspace<Dry>& dry_ws) {
                          twin.forward(dry, dry_ws, dry_view(view), {nullptr, {n * c.n_patches(), c.d_model}});
                      }).workspace_bytes};
    std::vector<float> out(n * c.n_patches() * c.d_model);
    vit.forward(be, ws, view, {out.data(), {n * c.n_patches(), c.d_model}});
    return out;
}

/// What an error of type E says; empty when nothing, or something else, was thrown.
template <class E, class Call>
std::string message(Call&& call) {
    try {
        call();
    } catch (const E& e) { return e.what(); } catch (const std::exception& e) {
        FAIL_CHECK("another error: " << std::string(e.what()));
        return {};
    }
    return {};
}
inline bool says(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

}  // namespace prism::test
