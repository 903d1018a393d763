// load: fills a module from a checkpoint, strictly both ways.
//
//     prism::load(cpu, vit, prism::Checkpoint::open("model.safetensors"));
#pragma once

#include "prism/backend/concept.hpp"
#include "prism/core/fields.hpp"
#include "prism/io/checkpoint.hpp"
#include "prism/io/name_map.hpp"
#include "prism/model/shard.hpp"
#include "prism/nn/param.hpp"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace prism {

/// Tensors of a file that no module asks for and nobody misses, by name.
using IgnoredTensors = std::function<bool(std::string_view name)>;

/// Who met whom: each tensor of a file and each parameter has to meet exactly one partner.
class Ledger {
public:
    template <class = void>
    explicit Ledger(Checkpoint file, IgnoredTensors ignored = {}) : file_(std::move(file)), ignored_(std::move(ignored)) {}

    /// The tensor of that name if it has this shape, or the one that it may have as well; else null, and the difference is
    /// on record.
    template <class = void>
    const TensorInfo* match(const std::string& name, const std::vector<std::size_t>& shape, const std::vector<std::size_t>& or_this) {
        const TensorInfo* tensor = file_.find(name);
        if (!tensor) {
            missing_.push_back({name, to_string(shape)});
            return nullptr;
        }
        used_.insert(tensor->name);
        if (tensor->shape == shape || tensor->shape == or_this) return tensor;
        mismatched_.push_back({name, to_string(shape), to_string(tensor->shape)});
        return nullptr;
    }

    /// What was left without a partner, as one clause; empty when nothing was.
    template <class = void>
    std::string problem() const {
        std::vector<std::string> unused;
        for (const TensorInfo& t : file_.tensors())
            if (!used_.contains(t.name) && !(ignored_ && ignored_(t.name))) unused.push_back(t.name);
        std::string text;
        int         hints = 8;  // looking for one costs about the product of all lengths
        list(text, "missing", missing_, [&](const Entry& e) {
            const auto near = hints-- > 0 ? nearest_name(e.name, unused) : std::nullopt;
            return "'" + e.name + "' " + e.expected + (near ? " (the file has '" + *near + "')" : "");
        });
        list(text, "unexpected", unused, [](const std::string& name) { return "'" + name + "'"; });
        list(text, "of another shape", mismatched_, [](const Entry& e) { return "'" + e.name + "' (expected " + e.expected + ", found " + e.found + ")"; });
        return text;
    }

    /// Throws LoadError with its members set when all that is wrong is one tensor's shape.
    template <class = void>
    void throw_if_one_shape() const {
        if (missing_.empty() && mismatched_.size() == 1) throw LoadError{file(), mismatched_[0].name, mismatched_[0].expected, mismatched_[0].found};
    }

    const std::string& file() const { return file_.file(); }

private:
    struct Entry {
        std::string name, expected, found{};
    };

    template <class Items, class Text>
    static void list(std::string& out, const char* title, const Items& items, Text text) {
        if (items.empty()) return;
        out += (out.empty() ? "" : "; ") + std::to_string(items.size()) + " " + title + ":";
        std::string_view between = " ";
        for (const auto& item : items) {
            out += std::string(between) + text(item);
            between = ", ";
        }
    }

    Checkpoint                      file_;
    IgnoredTensors                  ignored_;
    std::unordered_set<std::string> used_;
    std::vector<Entry>              missing_, mismatched_;
};

/// The format in which a matrix of a model is kept, from its name in the module and the type in its file.
using KeptFormat = std::function<Dtype(std::string_view name, Dtype stored)>;

struct LoadOptions {
    KeptFormat                                                kept{};         // empty: as stored
    std::function<void(std::size_t done, std::size_t total)> on_progress{};  // values that are in memory
};

/// Fills several modules from several files, or none of them.
///
///     Loading<B> loading{be};
///     loading.add(vit, tower_file);
///     loading.add(llm, llm_file);
///     loading.finish();
template <Backend B>
class Loading {
public:
    explicit Loading(B& be, LoadOptions options = {}) : be_(&be), options_(std::move(options)) {}

    /// Looks up every parameter of `module`, which has to stay where it is until finish(). `rename` turns the module's
    /// names into the file's. On a backend that is one of several (ParallelBackend) a parameter may have its share's shape,
    /// and takes that of the tensor. Parameters that `left_out` names (by the module's names) are not looked up; finish() makes
    /// them absent.
    template <class M>
    void add(M& module, Checkpoint file, const NameMap& rename = {}, const IgnoredTensors& ignored = {},
             const std::function<bool(std::string_view path)>& left_out = {}) {
        Ledger& ledger = ledgers_.emplace_back(std::move(file), ignored);
        visit(module, [&](const std::string& path, auto& param) {
            if (param.shape().empty()) return;
            if (left_out && left_out(path)) {
                steps_.push_back({&param, nullptr, {}, {}});
                return;
            }
            const RankOf rank = rank_of(*be_);
            const Cut    cut = rank.n > 1 ? cut_of(path) : Cut::none;
            if (const TensorInfo* tensor = ledger.match(rename(path), whole_shape(param.shape(), cut, rank), param.shape())) {
                const bool  converted = options_.kept && requires { param.rows(); } && !tensor->panels;
                const Dtype dtype = param.kept_as(converted ? options_.kept(path, tensor->dtype) : tensor->dtype);
                steps_.push_back({&param, tensor, dtype, [&param, tensor, dtype, cut, rank](B& be) {
                    const auto       run = [&](std::size_t n, const std::function<void(std::size_t, std::size_t)>& body) { in_pieces(be, n, 16, body); };
                    const TensorInfo values = tensor->made ? tensor->made(run) : *tensor;
                    if (tensor->shape == param.shape()) return param.place(be, values, dtype);
                    Placed share = param.place(be, shard_of(values, cut, rank), dtype);
                    share.partial = cut == Cut::columns;
                    return share;
                }});
            }
        });
    }

    /// Tensors of `file` whose names begin with none of `prefixes` belong to no module.
    void expect_only(const Checkpoint& file, std::initializer_list<std::string_view> prefixes) {
        std::vector<TensorInfo> others;
        for (const TensorInfo& t : file.tensors())
            if (std::none_of(prefixes.begin(), prefixes.end(), [&](std::string_view p) { return t.name.starts_with(p); })) others.push_back(t);
        ledgers_.emplace_back(Checkpoint{file.file(), std::move(others)});
    }

    /// Throws LoadError that lists all missing, unexpected and differently shaped tensors of all files. Otherwise each
    /// tensor and each parameter has met exactly one partner. The modules change all together, or, where anything is
    /// thrown, not at all.
    void finish() {
        std::string   problems;
        const Ledger* first = nullptr;
        std::size_t   n = 0;
        for (const Ledger& ledger : ledgers_) {
            const std::string problem = ledger.problem();
            if (problem.empty()) continue;
            if (n++ == 0) first = &ledger, problems = problem;
            else problems += "; in " + ledger.file() + ": " + problem;
        }
        if (n == 1 && problems.starts_with("1 of another shape")) first->throw_if_one_shape();
        if (n > 0) throw LoadError{first->file(), "the weights do not fit the model: " + problems};
        std::vector<Placed> values;
        values.reserve(steps_.size());
        std::size_t total = 0, done = 0;
        for (const Step& s : steps_) total += s.leaf->size();
        for (const Step& s : steps_) {
            values.push_back(s.tensor ? s.place(*be_) : Placed{});
            if (options_.on_progress) options_.on_progress(done += s.leaf->size(), total);
        }
        for (std::size_t i = 0; i < steps_.size(); ++i) {  // nothing throws from here on
            if (steps_[i].tensor) steps_[i].leaf->take(std::move(values[i]), steps_[i].dtype);
            else steps_[i].leaf->leave_out();
        }
    }

private:
    struct Step {
        detail::Leaf<B>*          leaf;
        const TensorInfo*         tensor;  // null: the part becomes absent
        Dtype                     dtype;
        std::function<Placed(B&)> place;
    };

    B*                 be_;
    LoadOptions        options_;
    std::deque<Ledger> ledgers_;  // a deque: tensors are pointed to
    std::vector<Step>  steps_;
};

/// Fills every parameter of `module`. On return each tensor of the file and each parameter has met exactly one partner;
/// parameters that the configuration leaves out take no part. `rename` turns the module's names into the file's.
/// Throws LoadError that lists all missing, unexpected and differently shaped tensors; the module is then unchanged.
template <Backend B, class M>
void load(B& be, M& module, const Checkpoint& file, const NameMap& rename = {}, const IgnoredTensors& ignored = {}, const LoadOptions& options = {}) {
    Loading<B> loading{be, options};
    loading.add(module, file, rename, ignored);
    loading.finish();
}

/// Parameters of a module, those that are absent by configuration not counted.
template <class M>
std::size_t count_parameters(const M& module) {
    std::size_t n = 0;
    visit(module, [&](const std::string&, const auto& param) { n += param.size(); });
    return n;
}

}  // namespace prism
