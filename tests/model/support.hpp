// Folders of models made by tests out of the reference's: copied, edited, their tensors renamed.
#pragma once

#include "prism/backend/cpu/cpu.hpp"
#include "prism/backend/dry/twin.hpp"
#include "prism/io/json.hpp"
#include "prism/io/safetensors.hpp"
#include "prism/model/pretrained.hpp"
#include "support/cases.hpp"
#include "support/temp_folder.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace prism::test {

/// An empty folder to make a model's in; removed with all that is in it.
class ModelFolder : public TempFolder {
public:
    /// A copy of a folder of the committed reference cases, such as "vlm/openvla-hf".
    void copy(const std::string& reference, const std::string& to = ".") const {
        const auto from = std::filesystem::path(PRISM_TEST_DATA) / "reference" / reference;
        std::filesystem::create_directories(path() / to);
        for (const auto& entry : std::filesystem::recursive_directory_iterator(from)) {
            const auto target = path() / to / entry.path().lexically_relative(from);
            if (entry.is_directory()) std::filesystem::create_directories(target);
            else std::filesystem::copy_file(std::filesystem::canonical(entry.path()), target);
        }
    }
    void write(const std::string& name, const Json& json) const {
        std::filesystem::create_directories((path() / name).parent_path());
        std::ofstream(path() / name) << json.dump();
    }
    void edit(const std::string& name, const std::function<void(Json&)>& change) const {
        Json json = read_json(path() / name);
        change(json);
        write(name, json);
    }
    void write(const std::string& name, const std::vector<TensorInfo>& tensors) const {
        std::filesystem::create_directories((path() / name).parent_path());
        std::vector<TensorInfo> dense;
        std::vector<TensorData> data;
        for (const TensorInfo& t : tensors) dense.push_back(contiguous(t));
        for (const TensorInfo& t : dense) data.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes()}});
        write_safetensors(path() / name, data);
    }
};

/// A small tower of our own.
inline const VitConfig eye{.image_size = 8, .patch_size = 4, .d_model = 8, .n_layers = 2, .n_heads = 2, .d_ff = 12};

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

}  // namespace prism::test
