// A signal that asks work to end where it can, instead of the program at once.
//
//     const Interrupt interrupt{SIGINT};
//     while (!interrupt.asked()) step();
#pragma once

#include <atomic>
#include <csignal>
#include <initializer_list>
#include <utility>
#include <vector>

namespace program {

/// While one of these is about, the signals are noted; there is at most one. `once`: what comes after the first does as without it.
class Interrupt {
public:
    explicit Interrupt(std::initializer_list<int> signals, bool once = false) {
        asked_ = false;
        struct sigaction action {};
        action.sa_handler = [](int signal) { which_ = signal, asked_ = true; };
        if (once) action.sa_flags = static_cast<int>(SA_RESETHAND);
        for (const int signal : signals) before_.emplace_back(signal, action), ::sigaction(signal, &action, &before_.back().second);
    }
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;
    ~Interrupt() {
        for (const auto& [signal, before] : before_) ::sigaction(signal, &before, nullptr);
    }

    /// Whether one has come; for work that watches a flag.
    static const std::atomic<bool>& asked() { return asked_; }
    /// Which one has come.
    static int signal() { return which_; }

private:
    inline static std::atomic<bool>               asked_{false};
    inline static std::atomic<int>                which_{0};
    std::vector<std::pair<int, struct sigaction>> before_;
};

}  // namespace program
