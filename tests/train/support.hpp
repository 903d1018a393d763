// A small model and examples without files, for tests of stages.
#pragma once

#include "io/support.hpp"
#include "support/arrays.hpp"

#include "prism/backend/cpu/training.hpp"
#include "prism/model/pretrained.hpp"
#include "prism/train/run/prismatic_stage.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace prism::test {

inline const std::filesystem::path small = std::filesystem::path(PRISM_TEST_DATA) / "reference/vlm/prism-dinosiglip+7b";

/// Rows of made-up tokens; two of three have a picture of noise.
struct Noise {
    std::vector<ExampleSize>         all;
    std::vector<ImageTransform>      towers;
    mutable std::atomic<std::size_t> reads{0};  // of pictures

    explicit Noise(const Prismatic<Cpu>& model) : towers(model.transforms()) {
        for (std::size_t i = 0; i < 13; ++i) all.push_back({i % 3 != 2, i % 5 + 1});
    }
    std::span<const ExampleSize>    sizes() const { return all; }
    std::span<const ImageTransform> transforms() const { return towers; }
    std::string                     name(std::size_t i) const { return "row " + std::to_string(i); }
    void                            read_picture(std::size_t i, PixelReader&, std::span<const TowerPixels> pixels) const {
        ++reads;
        for (const TowerPixels& tower : pixels) std::ranges::copy(normal(tower.out.size(), static_cast<unsigned>(i)), tower.out.data());
    }
    TokenRow tokens(std::size_t i) const {
        TokenRow row;
        for (std::size_t j = 0; j < i % 3 + 4; ++j) row.ids.push_back(static_cast<std::int32_t>((i * 7 + j * 3) % 40));
        row.labels = row.ids;
        row.labels[0] = ignored_label;
        return row;
    }
};
static_assert(ExampleSource<Noise>);

}  // namespace prism::test

