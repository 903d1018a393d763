// RunFolder: what a training run leaves on disk, in the layout of Prismatic's runs, so that a killed run goes on and a
// finished one is opened by from_pretrained and by PyTorch.
//
//     prism::RunFolder run{"runs", "prism-clip+7b+stage-finetune+x7"};
//     if (const auto point = run.resume_point()) trainer.restore(*point), run.go_on(point->step, point->checkpoint);
//     else run.go_on(0);
//     run.log(line);   run.save({.step = 100, .epoch = 0, .loss = 1.5}, model, state);
//
//     config.json                            the whole configuration
//     run-metrics.jsonl                      one line: run_id and hparams
//     <run_id>.jsonl, metrics.jsonl          one line a step; the second is a link to the first
//     checkpoints/step-000100-epoch-00-loss=1.5000.pt, latest-checkpoint.pt
//     loss.png                               the loss so far, at each checkpoint
//     resume.bundle                          what else a resumed run needs, and which checkpoint it goes with
// Source of the layout: TRI-ML/prismatic-vlms, prismatic/training/metrics.py, prismatic/training/strategies/fsdp.py.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/bundle.hpp"
#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "prism/io/torch_writer.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

namespace prism {

/// Where a run stands when a checkpoint is written.
struct RunPoint {
    std::size_t           step = 0, epoch = 0;
    std::optional<double> loss{};
};

/// "step-000100-epoch-01-loss=1.5000.pt".
inline std::string checkpoint_name(const RunPoint& point) {
    char text[96], loss[32] = "inf";
    if (point.loss) std::snprintf(loss, sizeof loss, "%.4f", *point.loss);
    std::snprintf(text, sizeof text, "step-%06zu-epoch-%02zu-loss=%s.pt", point.step, point.epoch, loss);
    return text;
}

/// What a run goes on from: the checkpoint with its parameters, and the state beside it.
struct ResumePoint {
    std::filesystem::path checkpoint;
    std::size_t           step;
    Bundle                bundle;  // its contents hold "step" and "checkpoint", and what else was saved

    /// The bytes of an entry. Throws FormatError unless it is there with as many.
    std::span<const std::byte> entry(const std::string& name, std::size_t n_bytes) const {
        for (const BundleEntry& e : bundle.entries)
            if (e.name == name && e.bytes.size() == n_bytes) return e.bytes;
        throw FormatError{bundle.file->path(), 0, "the state holds no entry '" + name + "' of " + std::to_string(n_bytes) + " bytes"};
    }
};

class RunFolder {
public:
    /// Makes the folder root/run_id, or opens it. Throws LoadError when it cannot be written, or another process works
    /// in it. `step_key` names the step in lines of metrics. `keep` checkpoints stay, the last ones; 0: all.
    RunFolder(const std::filesystem::path& root, std::string run_id, std::string step_key, std::size_t keep = 0)
        : path_(root / run_id), id_(std::move(run_id)), step_key_(std::move(step_key)), keep_(keep) {
        std::error_code problem;
        std::filesystem::create_directories(path_ / "checkpoints", problem);
        if (problem) throw LoadError{path_.string(), "cannot be made: " + problem.message()};
        lock_.emplace(path_ / ".lock");
        remove_unfinished();
    }

    const std::filesystem::path& path() const { return path_; }
    const std::string&           id() const { return id_; }
    std::filesystem::path        latest() const { return path_ / "checkpoints" / "latest-checkpoint.pt"; }

    /// Writes config.json and run-metrics.jsonl.
    void describe(const Json& config, const Json& hparams) const {
        write_text(path_ / "config.json", config.dump(2) + "\n");
        write_text(path_ / "run-metrics.jsonl", Json{{"run_id", id_}, {"hparams", hparams}}.dump() + "\n");
    }

    /// Where the run goes on, none at its beginning. Changes nothing: the run may still be refused. Throws FormatError for a damaged
    /// state, LoadError for a state without its checkpoint, or a latest checkpoint without a state: that run is not to be written over.
    std::optional<ResumePoint> resume_point() const {
        const auto                 state = path_ / "resume.bundle";
        std::optional<ResumePoint> point;
        if (std::filesystem::exists(state)) {
            Bundle      bundle = read_bundle(MappedFile::open(state));
            const auto  step = bundle.contents.find("step"), checkpoint = bundle.contents.find("checkpoint");
            if (step == bundle.contents.end() || !step->is_number_unsigned() || checkpoint == bundle.contents.end() || !checkpoint->is_string())
                throw FormatError{state.string(), detail::bundle_header_at, "the state names no step and no checkpoint"};
            point.emplace(ResumePoint{path_ / "checkpoints" / std::filesystem::path(checkpoint->get<std::string>()).filename(), step->get<std::size_t>(), std::move(bundle)});
            if (!std::filesystem::exists(point->checkpoint)) throw LoadError{point->checkpoint.string(), "is missing, and " + state.string() + " goes on from it"};
        } else if (std::filesystem::exists(latest())) {  // save() makes it after the state, so no killed run leaves one alone
            throw LoadError{latest().string(), "is there, but not " + state.string() + ", without which its run cannot go on; another run needs another run_id"};
        }
        return point;
    }
    /// Puts the latest checkpoint and the metrics back to where the run goes on: after `step`, from this checkpoint. At its
    /// beginning there is none.
    void go_on(std::size_t step, const std::filesystem::path& checkpoint = {}) {
        if (!checkpoint.empty()) make_latest(checkpoint);
        cut_metrics(step);
    }

    /// The lines of metrics that are there.
    std::vector<Json> metrics() const {
        std::vector<Json> lines;
        if (!std::filesystem::exists(metrics_path())) return lines;
        const std::string text = read_file(metrics_path());
        for (std::size_t at = 0; at < text.size();) {
            const std::size_t end = text.find('\n', at);
            if (end == text.npos) break;  // the process was killed in the middle of a line
            lines.push_back(parse_json(std::string_view(text).substr(at, end - at), metrics_path().string()));
            at = end + 1;
        }
        return lines;
    }

    /// Adds a line of metrics. Throws LoadError when the disk is full.
    void log(const Json& line) {
        if (!metrics_) metrics_.emplace(metrics_path());
        metrics_->append(line.dump() + "\n");
    }

    /// Writes a checkpoint and the state that goes with it. Killed at any moment, the run goes on from this point or from
    /// the one before, and both are whole: the checkpoint is on disk before the state names it, and older checkpoints go
    /// when no state names them. `contents` and `entries` are the state.
    void save(const RunPoint& point, const TorchDict& model, Json contents, std::span<const BundleEntry> entries) {
        if (metrics_) metrics_->sync();
        const std::string name = checkpoint_name(point);
        const auto        file = path_ / "checkpoints" / name;
        write_torch(file, {{"model", model}});
        contents["step"] = point.step, contents["checkpoint"] = name;
        write_bundle(path_ / "resume.bundle", contents, entries);
        make_latest(file);
        forget_old(name);
    }

private:
    /// A file that is only added to.
    class Appended {
    public:
        explicit Appended(const std::filesystem::path& path) : name_(path.string()), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
            if (fd_ < 0) fail("cannot be opened");
        }
        Appended(const Appended&) = delete;
        Appended& operator=(const Appended&) = delete;
        ~Appended() { ::close(fd_); }

        void append(std::string_view text) {
            while (!text.empty()) {
                const ssize_t n = ::write(fd_, text.data(), text.size());
                if (n < 0 && errno == EINTR) continue;
                if (n < 0) fail("cannot be written");
                text.remove_prefix(static_cast<std::size_t>(n));
            }
        }
        void sync() {
            if (::fsync(fd_) != 0) fail("cannot be written");
        }

    protected:
        [[noreturn]] void fail(const char* what) const { throw LoadError{name_, std::string(what) + ": " + detail::system_reason()}; }

        std::string name_;
        int         fd_;
    };

    /// Held as long as the process lives: two runs in one folder would write over each other.
    class Lock : Appended {
    public:
        explicit Lock(const std::filesystem::path& path) : Appended(path) {
            if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) fail("another process trains in this folder");
        }
    };

    std::filesystem::path metrics_path() const { return path_ / (id_ + ".jsonl"); }

    static void write_text(const std::filesystem::path& path, std::string_view text) {
        NewFile file{path};
        file.write(text);
        file.commit();
    }

    /// What a killed process was writing beside its place.
    void remove_unfinished() const {
        for (const auto& folder : {path_, path_ / "checkpoints"})
            for (const auto& entry : std::filesystem::directory_iterator(folder))
                if (entry.is_regular_file() && entry.path().filename().string().find(".new-") != std::string::npos) std::filesystem::remove(entry.path());
    }

    /// Lines of steps up to this one stay: what a killed run wrote after its last checkpoint is made again.
    void cut_metrics(std::size_t step) {
        std::string text;
        for (const Json& line : metrics())
            if (const auto at = line.find(step_key_); at != line.end() && at->is_number_unsigned() && at->get<std::size_t>() <= step) text += line.dump() + "\n";
        metrics_.reset();
        write_text(metrics_path(), text);
        std::error_code none;  // the second name is a convenience
        if (!std::filesystem::exists(path_ / "metrics.jsonl")) std::filesystem::create_symlink(id_ + ".jsonl", path_ / "metrics.jsonl", none);
    }

    /// The same file under a second name, or a copy where the file system has no links.
    void make_latest(const std::filesystem::path& file) const {
        std::error_code problem;
        if (std::filesystem::equivalent(file, latest(), problem)) return;
        const auto beside = path_ / "checkpoints" / "latest-checkpoint.pt.new-link";
        std::filesystem::remove(beside, problem);
        std::filesystem::create_hard_link(file, beside, problem);
        if (problem) {
            const auto whole = MappedFile::open(file);
            NewFile    copy{latest()};
            copy.write(whole->bytes());
            copy.commit();
            return;
        }
        std::filesystem::rename(beside, latest());
    }

    void forget_old(const std::string& newest) const {
        if (keep_ == 0) return;
        std::vector<std::string> names;
        for (const auto& entry : std::filesystem::directory_iterator(path_ / "checkpoints"))
            if (const std::string name = entry.path().filename().string(); name.starts_with("step-") && name.ends_with(".pt") && name != newest) names.push_back(name);
        std::ranges::sort(names);  // steps have leading zeros
        for (std::size_t i = 0; i + (keep_ - 1) < names.size(); ++i) std::filesystem::remove(path_ / "checkpoints" / names[i]);
    }

    std::filesystem::path   path_;
    std::string             id_, step_key_;
    std::size_t             keep_;
    std::optional<Lock>     lock_;
    std::optional<Appended> metrics_;
};

}  // namespace prism
