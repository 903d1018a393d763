// The world as a source of examples for prism's loader: training without files.
//
//     const shapes::WorldExamples examples{world, Split::train, 18'000, {.format = prompt_format::pure(), .transforms = vlm.transforms()}};
//     Loader loader{examples, [&](std::size_t k) { return plan.batch(k); }, {.threads = 2}};
#pragma once

#include "vocabulary.hpp"
#include "world.hpp"

#include "prism/train/data/llava.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace prism::shapes {

/// Rows 0 ... n - 1 of a split: conversations, or captions for the alignment stage. An ExampleSource.
class WorldExamples {
public:
    /// Makes every row once to know its size for the sampler: some 14,000 a second.
    WorldExamples(World world, Split split, std::size_t n, LlavaOptions options)
        : world_(std::move(world)), split_(split), options_(std::move(options)), words_(tokenizer()) {
        sizes_.reserve(n);
        for (std::size_t i = 0; i < n; ++i) {
            const Row   row = this->row(i);
            ExampleSize size{.picture = row.scene.has_value()};
            for (const prism::Turn& turn : row.turns) size.words += count_words(turn.text);
            sizes_.push_back(size);
        }
    }

    std::span<const ExampleSize>    sizes() const { return sizes_; }
    std::span<const ImageTransform> transforms() const { return options_.transforms; }
    std::string                     name(std::size_t i) const { return "shapes, seed " + std::to_string(world_.seed) + ": row " + std::to_string(i); }

    TokenRow tokens(std::size_t i) const {
        const Row row = this->row(i);
        if (options_.captions) return prism::caption_row(words_, options_.format, row.turns[1].text, options_.max_tokens);
        return conversation_row(words_, row.terse ? terse : options_.format, row.turns, row.scene.has_value(), options_.max_tokens);
    }
    void read_picture(std::size_t i, PixelReader&, std::span<const TowerPixels> towers) const {
        const Image picture = draw(world_.scene(split_, i));
        for (const TowerPixels& tower : towers) tower.transform.apply(picture, tower.out);
    }

private:
    inline static const PromptFormat terse{};  // nothing around what is said

    Row row(std::size_t i) const { return options_.captions ? world_.caption_row(split_, i) : world_.row(split_, i); }

    World                    world_;
    Split                    split_;
    LlavaOptions             options_;
    Tokenizer                words_;
    std::vector<ExampleSize> sizes_;
};

}  // namespace prism::shapes
