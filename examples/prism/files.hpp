// What goes in and out of the program: pictures, JSON and tensors, from files or the standard streams; and where models lie.
#pragma once

#include "commands.hpp"

#include "prism/core/tensor.hpp"
#include "prism/image/image.hpp"
#include "prism/io/json.hpp"
#include "prism/text/tokenizer.hpp"

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace program {

/// A line on standard error, unless it is to be quiet.
void note(const Common& common, std::string_view text);

/// Throws UsageError where nothing, or nothing but space, is said with an option: "--prompt".
void expect_text(const char* option, std::string_view text);

/// Throws UsageError where a PNG would get a name that promises another format. "-" and names without an ending are fine.
void expect_png(const char* option, const std::filesystem::path& path);

/// Words that a tokenizer of whole words takes letter by letter, in the order of the text, each once.
std::vector<std::string> unknown_words(const prism::Tokenizer& words, std::string_view text);

/// A note of words in a prompt that the small model of the repository has never read. Only where that is asked, and words are read.
void note_unknown_words(const Common& common, const prism::Tokenizer& words, std::string_view text);

/// One JSON value on standard output, in one line.
void print(const prism::Json& json);

/// A picture file; "-" is standard input. What can be shown although it is damaged is shown, with a note.
prism::Image open_picture(const Common& common, const std::filesystem::path& path);

/// A JSON file; "-" is standard input.
prism::Json open_json(const std::filesystem::path& path);

/// The tensors of a file; "-" is standard input.
std::vector<prism::TensorInfo> open_tensors(const std::filesystem::path& path);

/// Throws UsageError where a tensor and JSON would share standard output. For the beginning of a command.
void expect_one_output(const Common& common, const std::filesystem::path& out);

/// Writes one f32 tensor as safetensors; "-" is standard output. Says its shape: with --json as {"shape": ...}.
void write_tensor(const Common& common, const std::filesystem::path& path, const std::string& name,
                  const std::vector<std::size_t>& shape, std::span<const float> values);

/// Models of the repository that commands use without --model: the one of the shapes world, and a policy with random weights.
enum class Default { asks, acts };

/// The folder of --model, or the repository's, with a note.
std::filesystem::path model_folder(const Common& common, Default which = Default::asks);

}  // namespace program
