#include "prism/io/file.hpp"

#include "support.hpp"

#include <sys/stat.h>

using namespace prism;
using namespace prism::test;

TEST_CASE("io/file: what is no readable file is a LoadError that says why") {
    const TempFolder folder;
    CHECK(says(message<LoadError>([&] { read_file(folder.path() / "missing"); }), "No such file"));
    CHECK(says(message<LoadError>([&] { read_file(folder.path()); }), "is a folder"));
    CHECK(says(message<LoadError>([&] { MappedFile::open(folder.path()); }), "is a folder"));
    REQUIRE(::mkfifo((folder.path() / "pipe").c_str(), 0600) == 0);
    CHECK(says(message<LoadError>([&] { read_file(folder.path() / "pipe"); }), "not a regular file"));
    const auto file = folder.write("text", "12345");
    CHECK(read_file(file, 5) == "12345");
    CHECK(says(message<LoadError>([&] { read_file(file, 4); }), "over the limit of 4"));
}

TEST_CASE("io/file: both modes give the same bytes, and an empty file is fine") {
    const TempFolder folder;
    const auto       file = folder.write("text", "some bytes");
    for (const auto mode : {FileMode::map, FileMode::copy}) {
        const auto opened = MappedFile::open(file, mode);
        CHECK(std::string(reinterpret_cast<const char*>(opened->bytes().data()), opened->bytes().size()) ==
              "some bytes");
        CHECK(opened->path() == file.string());
        CHECK(MappedFile::open(folder.write("empty", ""), mode)->bytes().empty());
    }
}

TEST_CASE("io/file: a copy stays whole when its file is cut shorter") {
    const TempFolder folder;
    const auto       file = folder.write("big", std::string(1 << 20, 'x'));
    const auto       copy = MappedFile::open(file, FileMode::copy);
    std::filesystem::resize_file(file, 0);
    CHECK(copy->bytes().size() == 1 << 20);
    CHECK(copy->bytes().back() == std::byte{'x'});
}

TEST_CASE("io/file: a new file appears on commit, and without it the old one stays") {
    const TempFolder folder;
    const auto       file = folder.write("kept", "old");
    {
        NewFile abandoned{file};
        abandoned.write(std::string_view("half of the new"));
        CHECK(read_file(file) == "old");
    }
    CHECK(read_file(file) == "old");
    NewFile whole{file};
    whole.write(std::string_view("new"));
    whole.commit();
    CHECK(read_file(file) == "new");
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
    CHECK_THROWS_AS(NewFile(folder.path() / "no" / "folder"), LoadError);
}

TEST_CASE("io/file: a full disk is a LoadError and leaves nothing") {
    if (!std::filesystem::exists("/dev/full")) return;
    CHECK(says(message<LoadError>([] { NewFile("/dev/full/x"); }), "cannot be created"));
}
