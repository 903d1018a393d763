// ZipArchive: the entries of a zip file, found through its central directory.
//
//     const prism::ZipArchive zip{prism::MappedFile::open("weights.npz")};
//     for (const prism::ZipEntry& entry : zip.entries()) use(entry.name, zip.content(entry));
//
// Sizes come from the directory alone: PyTorch writes zeros, and numpy writes 0xffffffff, into the local headers.
// Source: PKWARE, APPNOTE.TXT.
#pragma once

#include "prism/core/error.hpp"
#include "prism/io/bytes.hpp"
#include "prism/io/file.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace prism {

struct ZipEntry {
    std::string                name;
    std::span<const std::byte> packed;      // as it lies in the file
    std::uint64_t              offset = 0;  // of `packed` in the file
    std::uint64_t              bytes = 0;   // unpacked, as the directory says
    std::uint32_t              crc = 0;     // of the unpacked bytes
    bool                       deflated = false;
};

/// Every entry's range, name and local header are checked on construction; nothing is unpacked.
class ZipArchive {
public:
    /// Throws FormatError for a damaged directory, and for entries that are encrypted, packed in a way other than
    /// deflate, spread over disks, named twice, or named to leave their folder.
    template <class = void>
    explicit ZipArchive(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {
        const Directory         directory = find_directory();
        ByteReader              in = reader(directory.offset, directory.bytes);
        constexpr std::uint64_t least_entry_bytes = 46;
        if (directory.n_entries > directory.bytes / least_entry_bytes)
            in.fail("a zip directory of " + std::to_string(directory.bytes) + " bytes cannot hold " +
                    std::to_string(directory.n_entries) + " entries");
        entries_.reserve(static_cast<std::size_t>(directory.n_entries));
        for (std::uint64_t i = 0; i < directory.n_entries; ++i) {
            const std::uint64_t at = in.offset();
            entries_.push_back(read_entry(in));
            if (!index_.try_emplace(entries_.back().name, entries_.size() - 1).second)
                throw FormatError{file_->path(), at, "the zip entry '" + entries_.back().name + "' is there twice"};
        }
        if (in.remaining() > 0) in.fail("the zip directory goes on after its last entry");
    }

    const std::vector<ZipEntry>&             entries() const { return entries_; }
    const std::shared_ptr<const MappedFile>& file() const { return file_; }
    template <class = void>
    const ZipEntry* find(const std::string& name) const {
        const auto at = index_.find(name);
        return at == index_.end() ? nullptr : &entries_[at->second];
    }

    /// The unpacked bytes: the archive's own where the entry is stored, else inflated memory. They are as many as the
    /// directory says and have its checksum, or FormatError is thrown; so it is when they are more than `limit_bytes`.
    template <class = void>
    std::shared_ptr<const MappedFile> content(const ZipEntry& entry, std::uint64_t limit_bytes) const {
        if (entry.bytes > limit_bytes)
            refuse(entry, "unpacks to " + std::to_string(entry.bytes) + " bytes, over the limit of " +
                              std::to_string(limit_bytes));
        const std::string name = file_->path() + "/" + entry.name;
        auto              unpacked =
            entry.deflated ? MappedFile::of(inflated(entry), name) : MappedFile::part(file_, entry.packed, name);
        check_crc(entry, unpacked->bytes());
        return unpacked;
    }

    /// Throws FormatError unless these bytes have the checksum of the entry.
    void check_crc(const ZipEntry& entry, std::span<const std::byte> bytes) const {
        if (::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()) != entry.crc)
            refuse(entry, "does not have its checksum");
    }

    /// Throws FormatError at the entry.
    [[noreturn]] void refuse(const ZipEntry& entry, const std::string& problem) const {
        throw FormatError{file_->path(), entry.offset, "the zip entry '" + entry.name + "' " + problem};
    }

private:
    static constexpr std::uint32_t in_zip64 = 0xffffffff;  // a 32-bit field whose value stands in the zip64 record

    struct Directory {
        std::uint64_t offset, bytes, n_entries;
    };

    /// A reader of `bytes` bytes from `offset` on. Throws FormatError where the file does not have them.
    ByteReader reader(std::uint64_t offset, std::uint64_t bytes) const {
        const auto all = file_->bytes();
        if (offset > all.size() || bytes > all.size() - offset)
            throw FormatError{file_->path(), all.size(),
                              "the zip file is cut off: " + std::to_string(bytes) + " bytes at " +
                                  std::to_string(offset) + " are missing"};
        return {all.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(bytes)), file_->path(), offset};
    }

    /// The end record stands last; only a comment of at most 65535 bytes may follow it.
    std::uint64_t find_end() const {
        constexpr std::size_t      end_bytes = 22, max_comment_bytes = 65535;
        constexpr std::string_view signature = "PK\x05\x06";
        const std::string_view     all{reinterpret_cast<const char*>(file_->bytes().data()), file_->bytes().size()};
        if (all.size() >= end_bytes) {
            const std::string_view tail = all.substr(all.size() - std::min(all.size(), end_bytes + max_comment_bytes));
            for (std::size_t i = tail.rfind(signature, tail.size() - end_bytes); i != tail.npos; i = i > 0 ? tail.rfind(signature, i - 1) : tail.npos) {
                const std::size_t at = all.size() - tail.size() + i;
                ByteReader        in = reader(at + 20, all.size() - at - 20);
                if (in.read<std::uint16_t>("the comment length") == in.remaining()) return at;
            }
        }
        throw FormatError{file_->path(), all.size(), "the zip file is cut off: its directory is missing"};
    }

    template <class = void>
    Directory find_directory() const {
        const std::uint64_t end = find_end();
        ByteReader          in = reader(end + 4, 18);
        const auto          disk = in.read<std::uint16_t>("the disk");
        const auto          directory_disk = in.read<std::uint16_t>("the directory's disk");
        const std::uint64_t here = in.read<std::uint16_t>("the number of entries"),
                            n = in.read<std::uint16_t>("the number of entries");
        const std::uint64_t bytes = in.read<std::uint32_t>("the directory's size"),
                            offset = in.read<std::uint32_t>("the directory's offset");
        Directory     directory{offset, bytes, n};
        std::uint64_t limit = end;  // the directory lies before this
        bool          many_disks = disk != 0 || directory_disk != 0 || here != n;

        constexpr std::uint64_t locator_bytes = 20, record_bytes = 56;
        if (end >= locator_bytes) {
            ByteReader locator = reader(end - locator_bytes, locator_bytes);
            if (locator.text(4, "the zip64 locator") == "PK\x06\x07") {
                const auto record_disk = locator.read<std::uint32_t>("the zip64 record's disk");
                limit = locator.read<std::uint64_t>("the zip64 record's offset");
                ByteReader record = reader(limit, record_bytes);
                if (record.text(4, "the zip64 record") != "PK\x06\x06")
                    record.fail("no zip64 record is where its locator points");
                record.take(12, "the zip64 record");  // its size and two versions
                many_disks = record_disk != 0;
                many_disks |= record.read<std::uint32_t>("the disk") != 0;
                many_disks |= record.read<std::uint32_t>("the directory's disk") != 0;
                const auto n_here = record.read<std::uint64_t>("the number of entries");
                directory.n_entries = record.read<std::uint64_t>("the number of entries");
                directory.bytes = record.read<std::uint64_t>("the directory's size");
                directory.offset = record.read<std::uint64_t>("the directory's offset");
                many_disks |= n_here != directory.n_entries;
            }
        }
        if (many_disks) throw FormatError{file_->path(), end, "the zip file is spread over several disks"};
        if (directory.offset > limit || directory.bytes > limit - directory.offset)
            throw FormatError{file_->path(), end,
                              "the zip directory is said to lie at " + std::to_string(directory.offset) + " with " +
                                  std::to_string(directory.bytes) + " bytes, past its end record"};
        return directory;
    }

    template <class = void>
    ZipEntry read_entry(ByteReader& in) const {
        const std::uint64_t at = in.offset();
        if (in.text(4, "a zip directory entry") != "PK\x01\x02")
            throw FormatError{file_->path(), at, "no zip directory entry is here"};
        in.take(4, "the versions");
        const auto flags = in.read<std::uint16_t>("the flags");
        const auto method = in.read<std::uint16_t>("the method");
        in.take(4, "the time");
        ZipEntry entry;
        entry.crc = in.read<std::uint32_t>("the checksum");
        std::uint64_t packed_bytes = in.read<std::uint32_t>("the packed size");
        entry.bytes = in.read<std::uint32_t>("the size");
        const auto name_bytes = in.read<std::uint16_t>("the name's length");
        const auto extra_bytes = in.read<std::uint16_t>("the extra field's length");
        const auto comment_bytes = in.read<std::uint16_t>("the comment's length");
        const auto disk = in.read<std::uint16_t>("the disk");
        in.take(6, "the attributes");
        std::uint64_t header_at = in.read<std::uint32_t>("the local header's offset");
        entry.name = in.text(name_bytes, "the name");
        if (entry.name.find('\0') != entry.name.npos)
            throw FormatError{file_->path(), at, "a zip entry has a name with a zero byte"};
        const auto fail = [&](const std::string& problem) {
            throw FormatError{file_->path(), at, "the zip entry '" + entry.name + "' " + problem};
        };

        ByteReader extra{in.take(extra_bytes, "the extra field"), file_->path(), in.offset() - extra_bytes};
        while (extra.remaining() >= 4) {
            const auto id = extra.read<std::uint16_t>("an extra field");
            const auto field_bytes = extra.read<std::uint16_t>("an extra field");
            ByteReader field{extra.take(field_bytes, "an extra field"), file_->path(), extra.offset() - field_bytes};
            if (id != 1) continue;  // 1 is zip64: the values that did not fit, in this order
            for (std::uint64_t* value : {&entry.bytes, &packed_bytes, &header_at})
                if (*value == in_zip64) *value = field.read<std::uint64_t>("a zip64 value");
        }
        in.take(comment_bytes, "the comment");

        if (disk != 0) fail("lies on another disk");
        if (flags & 1U) fail("is encrypted");
        constexpr unsigned stored = 0, deflated = 8;
        if (method != stored && method != deflated)
            fail("is packed by method " + std::to_string(method) + "; prism reads 0 (stored) and 8 (deflate)");
        entry.deflated = method == deflated;
        if (!is_safe(entry.name)) fail("has a name that could leave its folder");
        if (!entry.deflated && packed_bytes != entry.bytes)
            fail("is stored in " + std::to_string(packed_bytes) + " bytes, and said to have " +
                 std::to_string(entry.bytes));
        // Deflate spends at least two bits on 258 bytes: what claims more is lying, and gets no memory.
        if (entry.deflated && entry.bytes / 1032 > packed_bytes)
            fail("cannot unpack from " + std::to_string(packed_bytes) + " to " + std::to_string(entry.bytes) +
                 " bytes");

        ByteReader local = reader(header_at, 30);
        if (local.text(4, "a local header") != "PK\x03\x04") fail("has no local header");
        local.take(22, "a local header");
        const std::uint64_t local_name = local.read<std::uint16_t>("the name's length");
        const std::uint64_t local_extra = local.read<std::uint16_t>("the extra field's length");
        if (reader(header_at + 30, local_name).text(local_name, "the name") != entry.name)
            fail("has another name in its local header");
        entry.offset = header_at + 30 + local_name + local_extra;
        entry.packed = reader(entry.offset, packed_bytes).take(packed_bytes, "an entry");
        return entry;
    }

    /// Names are keys, never paths; this refuses those that would be dangerous if somebody took them for paths.
    static bool is_safe(std::string_view name) {
        if (name.empty() || name.front() == '/' || name.find('\\') != name.npos) return false;
        for (std::size_t at = 0; at <= name.size();) {
            const std::size_t slash = std::min(name.find('/', at), name.size());
            if (name.substr(at, slash - at) == "..") return false;
            at = slash + 1;
        }
        return true;
    }

    template <class = void>
    std::vector<std::byte> inflated(const ZipEntry& entry) const {
        std::vector<std::byte> out(static_cast<std::size_t>(entry.bytes));
        z_stream               z{};
        constexpr int          raw_deflate = -15;
        if (::inflateInit2(&z, raw_deflate) != Z_OK) throw std::bad_alloc{};
        struct End {
            z_stream* z;
            ~End() { ::inflateEnd(z); }
        } const end{&z};

        // zlib counts with 32 bits, so input and output are handed over in pieces.
        constexpr std::size_t piece = std::numeric_limits<uInt>::max();
        std::size_t           taken = 0, made = 0;
        std::byte             surplus;  // one byte of room more, to notice an entry that unpacks to more than it said
        int                   state = Z_OK;
        while (state == Z_OK) {
            const std::size_t in = std::min(piece, entry.packed.size() - taken),
                              room = std::min(piece, out.size() - made);
            z.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(entry.packed.data() + taken));
            z.avail_in = static_cast<uInt>(in);
            z.next_out = reinterpret_cast<Bytef*>(room ? out.data() + made : &surplus);
            z.avail_out = static_cast<uInt>(room ? room : 1);
            state = ::inflate(&z, Z_NO_FLUSH);
            if (!room && z.avail_out == 0)
                refuse(entry, "unpacks to more than the " + std::to_string(entry.bytes) + " bytes that it says");
            taken += in - z.avail_in;
            made += room ? room - z.avail_out : 0;
        }
        if (state != Z_STREAM_END || made != out.size())
            refuse(entry, "is damaged, and does not unpack to what it says");
        return out;
    }

    std::shared_ptr<const MappedFile>            file_;
    std::vector<ZipEntry>                        entries_;
    std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace prism
