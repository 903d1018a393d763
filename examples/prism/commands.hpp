// The commands of the program and what each can be asked. Reading the command line is main.cpp's business; the work of
// each command stands in a file named after it, and is a thin layer over public calls of the library.
#pragma once

#include "prism/generate/sampling.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace program {

/// Asked for something that cannot be asked: exit status 2. Failures of the work are prism::Error, exit status 1.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// What all commands share.
struct Common {
    std::filesystem::path model, vision_dir, llm_dir;
    std::size_t           threads = 0;  // 0: physical cores
    std::string           backend = "cpu", weights = "as-stored", isa{}, compute = "exact";
    bool                  quiet = false, json = false;
};

/// What a picture is asked for that comes without a question.
inline constexpr const char* default_prompt = "Describe the image.";

struct Ask {
    std::vector<std::filesystem::path> images;
    std::vector<std::string>           prompts;  // none: default_prompt
    bool                               raw = false;
    std::size_t                        max_new_tokens = 64;
    prism::SamplingOptions             sampling{};
};

struct Chat {
    std::filesystem::path  image;
    std::size_t            max_new_tokens = 512;
    prism::SamplingOptions sampling;
};

struct Score {
    std::filesystem::path image;
    std::string           prompt, choices;  // separated by commas
    bool                  raw = false;
};

struct Act {
    std::filesystem::path image;
    std::string           instruction, unnorm_key;
    bool                  raw = false;
};

struct Features {
    std::filesystem::path image{}, pixels{}, out{}, pca{};
    std::size_t           image_size = 0;  // 0: as the model has it
};

struct Logits {
    std::filesystem::path      image{}, out{};
    std::optional<std::string> prompt{};
    std::vector<std::int32_t>  ids{};  // instead of a prompt
    bool                       raw = false;
};

struct Preprocess {
    std::filesystem::path image, out;
    std::string           statistics = "imagenet", resize = "resize-naive";
    std::size_t           size = 224;
};

struct Tokenize {
    std::filesystem::path in;
    bool                  no_special = false, plain = false;
};

struct Detokenize {
    std::filesystem::path in;
    bool                  skip_special = false;
};

struct Inspect {
    std::filesystem::path path;
};

struct Pack {
    std::filesystem::path out;
};

struct Train {
    std::filesystem::path config;
};

struct Bench {
    std::vector<std::string> cases;  // none: a selection
    std::size_t              runs = 5;
    bool                     list = false;  // of cases, in place of timing any
};

struct Shapes {
    std::uint64_t         seed = 0, scene = 0, count = 0;  // count 0: all that the split or benchmark has
    std::filesystem::path out, out_folder;
    std::string           kind = "conversations", split;
    bool                  describe = false, questions = false, report = false;
};

void run(const Common&, const Ask&);
void run(const Common&, const Chat&);
void run(const Common&, const Score&);
void run(const Common&, const Act&);
void run(const Common&, const Features&);
void run(const Common&, const Logits&);
void run(const Common&, const Preprocess&);
void run(const Common&, const Tokenize&);
void run(const Common&, const Detokenize&);
void run(const Common&, const Inspect&);
void run(const Common&, const Pack&);
void run(const Common&, const Train&);
void run(const Common&, const Bench&);
void run(const Common&, const Shapes&);

/// The commands that compute on a GPU, in builds with CUDA. Throw DeviceError where there is none.
namespace on_cuda {

void run(const Common&, const Ask&);
void run(const Common&, const Chat&);
void run(const Common&, const Score&);
void run(const Common&, const Act&);
void run(const Common&, const Features&);
void run(const Common&, const Logits&);
void run(const Common&, const Bench&);

}  // namespace on_cuda

}  // namespace program
