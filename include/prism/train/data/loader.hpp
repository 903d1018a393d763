// Loader: batches made ahead by threads of their own, so that compute finds the next one ready.
//
//     prism::Loader loader{examples, [&](std::size_t k) { return plan.batch(k); }, {.threads = 2}};
//     while (const prism::Batch* batch = loader.next()) trainer.micro_step(*batch);
//     loader.counts().waited_s;               // how long compute stood still for data
//
// Which batch holds which examples is settled before any thread begins, and each writes where its example belongs; so
// the batches are the same for any number of threads.
#pragma once

#include "prism/train/data/llava.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace prism {

struct LoaderOptions {
    std::size_t threads = 2;  // that decode and tokenise
    std::size_t ahead = 3;    // batches in memory: the one that is used and those that are made meanwhile
    BadExamples bad = BadExamples::refuse;
    std::function<bool(std::size_t example)> known{};  // whose picture need not be read: its pixels may be anything. Called from any thread
};

struct LoaderCounts {
    std::uint64_t batches = 0;      // given out
    std::uint64_t waits = 0;        // times that the next one was not ready; the first one seldom is
    double        waited_s = 0;     // in all
    std::uint64_t skipped = 0;      // examples that could not be used and were left out of their batches
    std::string   first_skipped{};  // what is wrong with the first of them
};

/// Examples of batch k, by their indices; none ends the data. Called for one k after another.
using BatchPlan = std::function<std::vector<std::size_t>(std::size_t k)>;

template <ExampleSource S>
class Loader {
public:
    /// Begins at once, with batch `first`. `source` outlives the loader.
    Loader(const S& source, BatchPlan plan, const LoaderOptions& options = {}, std::size_t first = 0)
        : source_(&source), plan_(std::move(plan)), bad_(options.bad), known_(options.known), slots_(std::max<std::size_t>(2, options.ahead)), planned_(first), next_(first), claimed_(first) {
        workers_.reserve(std::max<std::size_t>(1, options.threads));
        try {
            while (workers_.size() < std::max<std::size_t>(1, options.threads)) workers_.emplace_back([this] { work(); });
        } catch (...) {
            if (workers_.empty()) throw;  // with fewer threads than asked for it goes on
        }
    }
    Loader(const Loader&) = delete;
    Loader& operator=(const Loader&) = delete;
    /// Waits for the pictures that are being decoded, no longer.
    ~Loader() {
        {
            const std::lock_guard lock{mutex_};
            stop_ = true;
        }
        work_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    /// The next batch, which stays as it is until the next call; null after the last one. Throws what went wrong with the
    /// first example of the batch that cannot be used (ExampleError), unless such are left out; again at the next call.
    /// Rows whose labels are all ignored cannot be used where they are a whole batch. What is left of a batch may be no row.
    const Batch* next() {
        std::unique_lock lock{mutex_};
        if (std::exchange(held_, false)) {
            ++next_;
            work_.notify_all();
        }
        const auto ready = [&] { return (end_ && next_ >= *end_) || (next_ < planned_ && slot(next_).n_left == 0); };
        if (!ready()) {
            const auto begin = std::chrono::steady_clock::now();
            ++counts_.waits;
            ready_.wait(lock, ready);
            counts_.waited_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        }
        if (end_ && next_ >= *end_) return nullptr;
        lock.unlock();  // a batch that is ready is the consumer's alone
        Slot& s = slot(next_);
        assemble(s);
        held_ = true;
        ++counts_.batches;
        return &s.batch;
    }

    /// Of the batches given out so far.
    const LoaderCounts& counts() const { return counts_; }

private:
    /// A batch that is being made.
    struct Slot {
        std::vector<std::size_t>        examples;
        std::vector<TokenRow>           rows;
        std::vector<std::size_t>        picture;  // which picture of the batch a row's is
        std::vector<std::exception_ptr> problems;
        std::size_t                     n_claimed = 0, n_left = 0;
        std::exception_ptr              problem;  // of the batch as a whole
        Batch                           batch;    // its pixels are written by the workers, the rest when it is given out
    };

    Slot& slot(std::size_t k) { return slots_[k % slots_.size()]; }

    void work() {
        PixelReader      reader{{.threads = 1}};
        std::unique_lock lock{mutex_};
        for (;;) {
            if (stop_) return;
            while (claimed_ < planned_ && slot(claimed_).n_claimed == slot(claimed_).examples.size()) ++claimed_;
            if (claimed_ < planned_) {
                Slot&             s = slot(claimed_);
                const std::size_t row = s.n_claimed++;
                lock.unlock();
                make(s, row, reader);
                lock.lock();
                if (--s.n_left == 0) ready_.notify_all();
            } else if (!end_ && planned_ < next_ + slots_.size()) {
                plan(slot(planned_));
            } else {
                work_.wait(lock);
            }
        }
    }

    /// Settles which examples the next batch has and where their pixels go.
    void plan(Slot& s) {
        s.examples.clear(), s.n_claimed = 0, s.problem = nullptr;
        try {
            s.examples = plan_(planned_);
            if (s.examples.empty()) end_ = planned_;
            std::size_t n_pictures = 0;
            s.picture.clear();
            for (const std::size_t i : s.examples) {
                if (i >= sizes().size()) throw ConfigError{"example", std::to_string(i), "a number below the " + std::to_string(sizes().size()) + " examples"};
                s.picture.push_back(n_pictures);
                n_pictures += sizes()[i].picture;
            }
            s.rows.resize(s.examples.size());
            s.problems.assign(s.examples.size(), nullptr);
            resize_pixels(s.batch, n_pictures);
        } catch (...) { s.examples.clear(), s.problem = std::current_exception(); }
        s.n_left = s.examples.size();
        if (s.n_left == 0) ready_.notify_all();
        if (!end_) ++planned_;
        work_.notify_all();
    }

    std::span<const ExampleSize>    sizes() const { return source_->sizes(); }
    std::span<const ImageTransform> transforms() const { return source_->transforms(); }
    static std::size_t              plane(const ImageTransform& t) { return 3 * t.size * t.size; }
    void                            resize_pixels(Batch& batch, std::size_t n_pictures) const {
        batch.pixels.resize(transforms().size());
        for (std::size_t t = 0; t < transforms().size(); ++t) batch.pixels[t].resize(n_pictures * plane(transforms()[t]));
    }

    void make(Slot& s, std::size_t row, PixelReader& reader) noexcept {
        try {
            const std::size_t i = s.examples[row];
            s.rows[row] = source_->tokens(i);
            if (!sizes()[i].picture || (known_ && known_(i))) return;
            std::vector<TowerPixels> towers;
            for (std::size_t t = 0; t < transforms().size(); ++t) {
                const ImageTransform& transform = transforms()[t];
                towers.push_back({transform, {s.batch.pixels[t].data() + s.picture[row] * plane(transform), {3, transform.size, transform.size}}});
            }
            source_->read_picture(i, reader, towers);
        } catch (...) { s.problems[row] = std::current_exception(); }
    }

    void assemble(Slot& s) {
        if (s.problem) std::rethrow_exception(s.problem);
        std::uint64_t skipped = 0;
        std::string   first;
        const auto    leave_out = [&](const std::string& what, std::size_t n) {
            if (skipped == 0) first = what;
            skipped += n;
        };
        s.batch.clear_rows();
        for (std::size_t row = 0; row < s.examples.size(); ++row) {
            if (s.problems[row]) {
                try {
                    std::rethrow_exception(s.problems[row]);
                } catch (const ExampleError& e) {
                    if (bad_ == BadExamples::refuse) throw;
                    leave_out(e.what(), 1);
                }
                continue;
            }
            const bool has_picture = sizes()[s.examples[row]].picture;
            s.batch.add(s.rows[row], s.examples[row], has_picture);
            // Pictures close up over those that were left out; nothing moves where there are none.
            const std::size_t to = s.batch.n_pictures() - 1, from = s.picture[row];
            for (std::size_t t = 0; has_picture && to != from && t < transforms().size(); ++t) {
                const std::size_t n = plane(transforms()[t]);
                std::copy_n(s.batch.pixels[t].data() + from * n, n, s.batch.pixels[t].data() + to * n);
            }
        }
        // One such row is no harm beside others; a mean over nothing is. Rows of a source that has no labels are another matter.
        if (!s.batch.labels.empty() && s.batch.n_supervised() == 0) {
            const ExampleError nothing{detail::names_of(*source_, s.batch.examples), "conversations", "teach nothing: no answer is within the tokens that are read"};
            if (bad_ == BadExamples::refuse) throw nothing;
            leave_out(nothing.what(), s.batch.n_rows());
            s.batch.clear_rows();
        }
        resize_pixels(s.batch, s.batch.n_pictures());
        if (counts_.skipped == 0) counts_.first_skipped = std::move(first);
        counts_.skipped += skipped;
    }

    const S*                   source_;
    BatchPlan                  plan_;
    BadExamples                bad_;
    std::function<bool(std::size_t)> known_;
    std::mutex                 mutex_;
    std::condition_variable    work_, ready_;
    std::vector<Slot>          slots_;
    std::size_t                planned_, next_, claimed_;  // batches: planned, given out next, whose rows are being made
    std::optional<std::size_t> end_;                       // the batch after the last one
    bool                       held_ = false;              // batch next_ is in the consumer's hands
    bool                       stop_ = false;
    LoaderCounts               counts_;
    std::vector<std::thread>   workers_;
};

}  // namespace prism
