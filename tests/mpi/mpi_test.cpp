// Ranks that are processes. CMakeLists.txt starts this program with mpirun.
#include "support/thread_ranks.hpp"

#include "prism/train/mpi.hpp"

#include <doctest/doctest.h>

#include <csignal>
#include <cstdlib>
#include <string>

using namespace prism;

namespace {

const Mpi& world() {
    static const Mpi all;
    return all;
}

}  // namespace

TEST_CASE("mpi: processes are ranks") {
    const Ranks& ranks = world().ranks();
    const char*  asked = std::getenv("PRISM_MPI_RANKS");
    CHECK(ranks.n() == (asked ? std::stoul(asked) : 1));
    CHECK(test::fault_of(ranks) == "");
    const auto where = ranks.gather(ranks.rank());
    CHECK(where.back() + 1 == ranks.n());
}

TEST_CASE("mpi: what fails on one process fails on all") {
    if (world().ranks().n() == 1) return;
    const Mpi again{MPI_COMM_WORLD};  // in a program that has started MPI
    REQUIRE(again.ranks().n() > 1);
    std::string found;
    try {
        again.ranks().together([&] {
            if (again.ranks().rank() == 1) throw Error{"no more"};
        });
    } catch (const RankError& e) { found = "rank " + std::to_string(e.rank); } catch (const Error& e) { found = e.what(); }
    CHECK(found == (again.ranks().rank() == 1 ? "no more" : "rank 1"));
    CHECK(again.ranks().stopped());
}

TEST_CASE("mpi: one that is killed ends all" * doctest::skip(!std::getenv("PRISM_MPI_KILL"))) {
    if (world().ranks().rank() == 1) std::raise(SIGKILL);
    world().ranks().gather(0);
    CHECK(false);  // nobody comes here
}
