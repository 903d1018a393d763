// Progress of long work on standard error: a bar with rate and time left on a terminal, else a line now and then.
//
//     Progress reading{!common.quiet, "reading the prompt", flops, 1e9, "GFLOP", [&] { return done(); }};
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <unistd.h>

namespace program {

/// Watches work from a thread of its own, from construction to destruction. Work of less than a second goes unnoticed.
class Progress {
public:
    /// `done` tells from any thread how much of `total` is done, in units of which `scale` make one `unit`; a total of 0
    /// is not known beforehand. `note` has more to say, at the end of the line.
    Progress(bool shown, std::string what, double total = 0, double scale = 1, std::string unit = "", std::function<double()> done = {},
             std::function<std::string()> note = {})
        : what_(std::move(what)), unit_(std::move(unit)), total_(total), scale_(scale), done_(std::move(done)), note_(std::move(note)) {
        if (shown) watcher_ = std::thread([this] { watch(); });
    }
    ~Progress() {
        if (!watcher_.joinable()) return;
        {
            std::lock_guard lock(mutex_);
            finished_ = true;
        }
        wake_.notify_all();
        watcher_.join();
    }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

private:
    using Clock = std::chrono::steady_clock;

    void watch() {
        using namespace std::chrono_literals;
        const bool       terminal = ::isatty(STDERR_FILENO) != 0;
        const auto       step = terminal ? Clock::duration(100ms) : Clock::duration(10s);
        bool             drawn = false;
        std::unique_lock lock(mutex_);
        for (auto next = start_ + 1s; !wake_.wait_until(lock, next, [this] { return finished_; }); next += step) {
            const std::string line = terminal ? "\r\x1b[K" + state(24) : state(0) + "\n";
            std::fputs(line.c_str(), stderr);
            drawn = terminal;
        }
        if (drawn) std::fputs("\r\x1b[K", stderr);
    }

    /// "reading the prompt [########        ]  43 %  12.3 GFLOP/s  4 s left", with a bar of that many places.
    std::string state(int width) const {
        const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
        const auto   print = [](const char* format, auto... values) {
            char text[64];
            std::snprintf(text, sizeof text, format, values...);
            return std::string(text);
        };
        const double done = done_ && total_ > 0 ? std::min(done_(), total_) : 0, part = total_ > 0 ? done / total_ : 0;
        if (done <= 0) return what_ + print("  %.0f s", seconds);
        std::string  text = what_;
        const int    filled = static_cast<int>(part * width);
        if (width) text += " [" + std::string(static_cast<std::size_t>(filled), '#') + std::string(static_cast<std::size_t>(width - filled), ' ') + "]";
        return text + print("  %.0f %%  %.1f ", 100 * part, done / scale_ / seconds) + unit_ + print("/s  %.0f s left", seconds * (1 - part) / part) + (note_ ? "  " + note_() : "");
    }

    std::string             what_, unit_;
    double                  total_, scale_;
    std::function<double()> done_;
    std::function<std::string()> note_;
    Clock::time_point       start_ = Clock::now();
    std::mutex              mutex_;
    std::condition_variable wake_;
    bool                    finished_ = false;
    std::thread             watcher_;  // last: it uses everything above
};

}  // namespace program
