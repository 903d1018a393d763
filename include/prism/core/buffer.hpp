// Buffer: memory with one owner. Backends make them; parameters, workspaces and caches keep them.
#pragma once

#include <cstddef>
#include <new>
#include <utility>

namespace prism {

/// `bytes` of memory in `Space`, freed when the buffer goes. Move-only. Aligned to 64 bytes.
template <class Space>
class Buffer {
public:
    using Release = void (*)(void* data, std::size_t bytes) noexcept;

    Buffer() = default;
    Buffer(void* data, std::size_t bytes, Release release) : data_(data), bytes_(bytes), release_(release) {}
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), release_(other.release_) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_), std::swap(bytes_, other.bytes_), std::swap(release_, other.release_);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (data_ && release_) release_(data_, bytes_);
    }

    void*       data() const { return data_; }
    std::size_t bytes() const { return bytes_; }
    template <class T> T* as() const { return static_cast<T*>(data_); }

private:
    void*       data_ = nullptr;
    std::size_t bytes_ = 0;
    Release     release_ = nullptr;
};

}  // namespace prism
