// load: fills a module from a checkpoint, strictly both ways.
//
//     prism::load(cpu, vit, prism::Checkpoint::open("model.safetensors"));
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/fields.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/name_map.hpp"

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace prism {

/// Tensors of a file that no module asks for and nobody misses, by name.
using IgnoredTensors = std::function<bool(std::string_view name)>;

/// Who met whom: each tensor of the file and each parameter has to meet exactly one partner.
class Ledger {
public:
    explicit Ledger(const Checkpoint& file, IgnoredTensors ignored = {}) : file_(&file), ignored_(std::move(ignored)) {}

    /// The tensor of that name if it has this shape; else null, and the difference is on record.
    const TensorInfo* match(const std::string& name, const std::vector<std::size_t>& shape) {
        const TensorInfo* tensor = file_->find(name);
        if (!tensor) {
            missing_.push_back({name, to_string(shape)});
            return nullptr;
        }
        used_.insert(tensor->name);
        if (tensor->shape == shape) return tensor;
        mismatched_.push_back({name, to_string(shape), to_string(tensor->shape)});
        return nullptr;
    }

    /// Throws LoadError when anything was left without a partner: of one shape with its members set, of more as a list.
    void settle() const {
        std::vector<std::string> unused;
        for (const TensorInfo& t : file_->tensors())
            if (!used_.contains(t.name) && !(ignored_ && ignored_(t.name))) unused.push_back(t.name);
        if (missing_.empty() && mismatched_.empty() && unused.empty()) return;
        if (missing_.empty() && unused.empty() && mismatched_.size() == 1)
            throw LoadError{file_->file(), mismatched_[0].name, mismatched_[0].expected, mismatched_[0].found};

        std::string problem = "the weights do not fit the model";
        int         hints = 8;  // looking for one costs about the product of all lengths
        list(problem, "missing", missing_, [&](const Entry& e) {
            const auto near = hints-- > 0 ? nearest_name(e.name, unused) : std::nullopt;
            return "'" + e.name + "' " + e.expected + (near ? " (the file has '" + *near + "')" : "");
        });
        list(problem, "unexpected", unused, [](const std::string& name) { return "'" + name + "'"; });
        list(problem, "of another shape", mismatched_, [](const Entry& e) { return "'" + e.name + "' (expected " + e.expected + ", found " + e.found + ")"; });
        throw LoadError{file_->file(), problem};
    }

private:
    struct Entry {
        std::string name, expected, found{};
    };

    template <class Items, class Text>
    static void list(std::string& out, const char* title, const Items& items, Text text) {
        if (items.empty()) return;
        out += "; " + std::to_string(items.size()) + " " + title + ":";
        std::string_view between = " ";
        for (const auto& item : items) {
            out += std::string(between) + text(item);
            between = ", ";
        }
    }

    const Checkpoint*               file_;
    IgnoredTensors                  ignored_;
    std::unordered_set<std::string> used_;
    std::vector<Entry>              missing_, mismatched_;
};

/// Fills every parameter of `module`. On return each tensor of the file and each parameter has met exactly one partner;
/// parameters that the configuration leaves out take no part. `rename` turns the module's names into the file's.
/// Throws LoadError that lists all missing, unexpected and differently shaped tensors; the module is then unchanged.
template <Backend B, class M>
void load(B& be, M& module, const Checkpoint& file, const NameMap& rename = {}, const IgnoredTensors& ignored = {}) {
    Ledger                         ledger{file, ignored};
    std::vector<const TensorInfo*> tensors;  // in the order of visit
    visit(module, [&](const std::string& path, const auto& param) {
        if (!param.shape().empty()) tensors.push_back(ledger.match(rename(path), param.shape()));
    });
    ledger.settle();
    auto next = tensors.begin();
    visit(module, [&](const std::string&, auto& param) {
        if (!param.shape().empty()) param.bind(be, **next++);  // CPU: points into the mapped file; CUDA: uploads
    });
}

/// Parameters of a module, those that are absent by configuration not counted.
template <class M>
std::size_t count_parameters(const M& module) {
    std::size_t n = 0;
    visit(module, [&](const std::string&, const auto& param) { n += param.size(); });
    return n;
}

}  // namespace prism
