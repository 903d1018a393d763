// Files as bytes: read whole, mapped into memory, or written so that no reader ever sees half of one.
//
//     std::string text    = prism::read_file("merges.txt");
//     auto        weights = prism::MappedFile::open("model.safetensors");   // weights->bytes() is the file
#pragma once

#include "prism/core/error.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace prism {

namespace detail {

/// Why the last system call failed, in the system's words.
inline std::string system_reason() { return std::generic_category().message(errno); }

/// A regular file, open for reading.
class InputFile {
public:
    /// Throws LoadError unless `path` is a regular file that may be read.
    explicit InputFile(const std::filesystem::path& path) : name_(path.string()) {
        // Non-blocking, because opening a pipe would otherwise wait for somebody to write into it.
        fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd_ < 0) throw LoadError{name_, "cannot be opened: " + system_reason()};
        struct stat status {};
        const char* unfit = nullptr;
        if (::fstat(fd_, &status) != 0) unfit = "cannot be read";
        else if (S_ISDIR(status.st_mode)) unfit = "is a folder, where a file is needed";
        else if (!S_ISREG(status.st_mode)) unfit = "is not a regular file";
        if (unfit) {
            ::close(fd_);
            throw LoadError{name_, unfit};
        }
        bytes_ = static_cast<std::size_t>(status.st_size);
    }
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;
    ~InputFile() { ::close(fd_); }

    int                fd() const { return fd_; }
    std::size_t        bytes() const { return bytes_; }
    const std::string& name() const { return name_; }

    /// Fills `to` from the start of the file. Throws LoadError when the file has become shorter than that.
    void read(std::span<std::byte> to) const {
        while (!to.empty()) {
            const ssize_t n = ::read(fd_, to.data(), std::min<std::size_t>(to.size(), 1U << 30));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) throw LoadError{name_, "cannot be read: " + system_reason()};
            if (n == 0) throw LoadError{name_, "grew shorter while it was being read"};
            to = to.subspan(static_cast<std::size_t>(n));
        }
    }

private:
    int         fd_ = -1;
    std::size_t bytes_ = 0;
    std::string name_;
};

/// Whether a file begins with these bytes. Throws LoadError unless it is a regular file that may be read.
inline bool begins_with(const std::filesystem::path& path, std::string_view magic) {
    const InputFile file{path};
    if (file.bytes() < magic.size()) return false;
    std::string first(magic.size(), '\0');
    file.read(std::as_writable_bytes(std::span{first}));
    return first == magic;
}

}  // namespace detail

/// The whole file. Throws LoadError when it does not exist, is no regular file, cannot be read, or is over the limit.
inline std::string read_file(const std::filesystem::path& path, std::uint64_t limit_bytes = 1ULL << 30) {
    const detail::InputFile file{path};
    if (file.bytes() > limit_bytes)
        throw LoadError{file.name(), "has " + std::to_string(file.bytes()) + " bytes, over the limit of " +
                                         std::to_string(limit_bytes)};
    std::string text(file.bytes(), '\0');
    file.read(std::as_writable_bytes(std::span{text}));
    return text;
}

enum class FileMode {
    map,  // pages are read when they are touched; the process is killed (SIGBUS) if the file is cut shorter meanwhile
    copy  // read into memory first: costs the file's size, and nothing done to the file afterwards can hurt
};

/// The bytes of a file, constant and shared: whoever points into them keeps the pointer to the MappedFile.
class MappedFile {
public:
    /// Throws LoadError as read_file does, std::bad_alloc when a copy does not fit into memory.
    static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path, FileMode mode = FileMode::map) {
        const detail::InputFile file{path};
        const std::size_t       n = file.bytes();
        if (n == 0) return make(nullptr, {}, file.name());
        if (mode == FileMode::copy) {
            constexpr std::align_val_t line{64};  // what lies at a multiple of 64 in the file does so in memory, too
            auto* const                memory = static_cast<std::byte*>(::operator new(n, line));
            std::shared_ptr<const void> owner{memory, [](void* p) { ::operator delete(p, line); }};
            file.read({memory, n});
            return make(std::move(owner), {memory, n}, file.name());
        }
        void* const pages = ::mmap(nullptr, n, PROT_READ, MAP_PRIVATE, file.fd(), 0);
        if (pages == MAP_FAILED) throw LoadError{file.name(), "cannot be mapped: " + detail::system_reason()};
        std::shared_ptr<const void> owner{pages, [n](void* p) { ::munmap(p, n); }};
        return make(std::move(owner), {static_cast<const std::byte*>(pages), n}, file.name(), true);
    }

    /// Bytes that are in memory already, as if they had come from a file called `path`.
    static std::shared_ptr<const MappedFile> of(std::vector<std::byte> contents, std::string path) {
        const auto memory = std::make_shared<const std::vector<std::byte>>(std::move(contents));
        return make(memory, *memory, std::move(path));
    }

    /// A part of `file`, as a file of its own called `path`.
    static std::shared_ptr<const MappedFile> part(const std::shared_ptr<const MappedFile>& file,
                                                  std::span<const std::byte> bytes, std::string path) {
        return make(file, bytes, std::move(path), file->mapped());
    }

    std::span<const std::byte> bytes() const { return bytes_; }
    const std::string&         path() const { return path_; }
    /// Whether the bytes are pages of the file, which the system can read again when they were given back.
    bool mapped() const { return mapped_; }

private:
    MappedFile(std::shared_ptr<const void> owner, std::span<const std::byte> bytes, std::string path, bool mapped)
        : owner_(std::move(owner)), bytes_(bytes), path_(std::move(path)), mapped_(mapped) {}

    static std::shared_ptr<const MappedFile> make(std::shared_ptr<const void> owner, std::span<const std::byte> bytes,
                                                  std::string path, bool mapped = false) {
        return std::shared_ptr<const MappedFile>{new MappedFile{std::move(owner), bytes, std::move(path), mapped}};
    }

    std::shared_ptr<const void> owner_;
    std::span<const std::byte>  bytes_;
    std::string                 path_;
    bool                        mapped_ = false;
};

/// A file that comes into being whole or not at all: written beside its place, synced, then renamed over it.
///
///     NewFile file{"model.safetensors"};
///     file.write(header);  file.write(data);
///     file.commit();       // without this the old file, or none, stays
class NewFile {
public:
    /// Throws LoadError when the folder cannot be written to, or something that is no file has that name.
    explicit NewFile(std::filesystem::path path) : path_(std::move(path)) {
        std::error_code ignored;
        if (const auto there = std::filesystem::status(path_, ignored); std::filesystem::exists(there) && !std::filesystem::is_regular_file(there))
            throw LoadError{path_.string(), std::filesystem::is_directory(there) ? "is a folder" : "is no file that could be replaced"};
        static std::atomic<unsigned> counter{0};
        beside_ = path_;
        beside_ += ".new-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
        fd_ = ::open(beside_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd_ < 0) fail("cannot be created");
    }
    NewFile(const NewFile&) = delete;
    NewFile& operator=(const NewFile&) = delete;
    ~NewFile() {
        if (fd_ < 0) return;
        ::close(fd_);
        ::unlink(beside_.c_str());
    }

    /// Appends. Throws LoadError when the disk is full or fails.
    void write(std::span<const std::byte> bytes) {
        while (!bytes.empty()) {
            const ssize_t n = ::write(fd_, bytes.data(), std::min<std::size_t>(bytes.size(), 1U << 30));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail("cannot be written");
            bytes = bytes.subspan(static_cast<std::size_t>(n));
        }
    }
    void write(std::string_view text) { write(std::as_bytes(std::span{text})); }

    /// Puts the file in its place, on disk and not only in the system's memory. Throws LoadError; the old file stays.
    void commit() {
        if (::fsync(fd_) != 0) fail("cannot be written");
        if (::rename(beside_.c_str(), path_.c_str()) != 0) fail("cannot be replaced");
        ::close(std::exchange(fd_, -1));
        const auto folder = path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
        if (const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); fd >= 0) {
            ::fsync(fd);  // the new name, too; some file systems cannot sync a folder, and the data is safe regardless
            ::close(fd);
        }
    }

private:
    [[noreturn]] void fail(const char* what) const {
        throw LoadError{path_.string(), std::string(what) + ": " + detail::system_reason()};
    }

    std::filesystem::path path_, beside_;
    int                   fd_ = -1;
};

}  // namespace prism
