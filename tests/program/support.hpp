// Running the program as its users do: arguments in, status and both streams out.
#pragma once

#include "prism/io/file.hpp"
#include "prism/io/json.hpp"
#include "support/temp_folder.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace prism::test {

/// A folder that goes away with its owner; names in it as the program takes them.
class Scratch {
public:
    std::string path(std::string_view name) const { return (folder_ / name).string(); }
    std::string write(std::string_view name, std::string_view bytes) const { return folder_.write(name, bytes).string(); }

private:
    TempFolder folder_;
};

struct Ran {
    int         status = -1;  // exit status; 128 and the number of the signal that ended it
    std::string out, err;

    Json json() const {
        REQUIRE_MESSAGE(status == 0, err);
        return parse_json(out, "standard output");  // so nothing else stands there
    }
    std::size_t error_lines() const { return static_cast<std::size_t>(std::count(err.begin(), err.end(), '\n')); }
};

/// Runs a program, the first of these words, with this standard input; sends it `signal` after that time, unless that is 0.
inline Ran run_program(const std::vector<std::string>& words, std::string_view input = {}, std::chrono::microseconds kill_after = {}, int signal = SIGKILL) {
    const Scratch     scratch;
    const std::string in = scratch.write("in", input), out = scratch.path("out"), err = scratch.path("err");
    std::vector<char*> argv;
    for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawn_file_actions_addopen(&files, STDIN_FILENO, in.c_str(), O_RDONLY, 0);
    ::posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT, 0600);
    ::posix_spawn_file_actions_addopen(&files, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT, 0600);
    pid_t pid = 0;
    REQUIRE(::posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ) == 0);
    ::posix_spawn_file_actions_destroy(&files);
    if (kill_after.count() > 0) {
        std::this_thread::sleep_for(kill_after);
        ::kill(pid, signal);
    }
    int state = 0;
    REQUIRE(::waitpid(pid, &state, 0) == pid);
    return {WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state), read_file(out), read_file(err)};
}
/// Runs prism with these arguments.
inline Ran run(std::vector<std::string> arguments, std::string_view input = {}, std::chrono::microseconds kill_after = {}, int signal = SIGKILL) {
    arguments.insert(arguments.begin(), PRISM_PROGRAM);
    return run_program(arguments, input, kill_after, signal);
}

}  // namespace prism::test
