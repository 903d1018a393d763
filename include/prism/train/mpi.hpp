// Mpi: this process among those that mpirun started. The only header that needs an MPI library; link MPI::MPI_CXX.
//
//     prism::Mpi            mpi;  // alone, and without MPI, unless mpirun or its like started the process
//     prism::PrismaticStage stage{cpu, vlm, prism::Stage::finetune, options, mpi.ranks()};
//     prism::train_stage(stage, examples, {.settings = settings, .ranks = mpi.ranks()}, folder, hooks);
#pragma once

#include "prism/core/error.hpp"
#include "prism/train/ranks.hpp"

#include <array>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <span>
#include <string>

#include <mpi.h>

namespace prism {

/// A call of MPI failed.
class MpiError : public Error {
public:
    MpiError(std::string call, int code) : Error(call + ": " + text_of(code)), call(std::move(call)), code(code) {}

    std::string call;
    int         code;

private:
    static std::string text_of(int code) {
        std::array<char, MPI_MAX_ERROR_STRING> text{};
        int                                    size = 0;
        return ::MPI_Error_string(code, text.data(), &size) == MPI_SUCCESS ? std::string(text.data(), static_cast<std::size_t>(size)) : "error " + std::to_string(code);
    }
};

/// Calls are made by the thread that made it.
class Mpi {
public:
    /// Starts MPI where an MPI launcher started the process. Throws MpiError.
    Mpi() : owner_(launched()) {
        if (!owner_) return;
        int level = 0;
        expect("MPI_Init_thread", ::MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level));
        if (level < MPI_THREAD_FUNNELED) throw MpiError{"MPI_Init_thread, for a program with threads", MPI_ERR_OTHER};
        join(MPI_COMM_WORLD);
    }
    /// The processes of a communicator, in a program that starts and ends MPI itself. Collective. Throws MpiError.
    explicit Mpi(MPI_Comm processes) { join(processes); }
    Mpi(const Mpi&) = delete;
    Mpi& operator=(const Mpi&) = delete;
    /// Ends MPI where it was started here. When an exception is on its way, that waits until the process ends, because the first
    /// process to leave takes the others with it, and one of them still has to say what went wrong.
    ~Mpi() {
        const bool failed = std::uncaught_exceptions() > exceptions_;
        if (processes_ == MPI_COMM_NULL || (failed && !owner_)) return;
        if (!failed) {
            ::MPI_Comm_free(&processes_);
            if (owner_) ::MPI_Finalize();
        } else if (ranks_.stopped() || ranks_.n() == 1) {  // nobody waits for this one
            std::atexit([] { ::MPI_Barrier(MPI_COMM_WORLD), ::MPI_Finalize(); });
        } else {
            std::atexit([] { ::MPI_Abort(MPI_COMM_WORLD, 1); });
        }
    }

    const Ranks& ranks() const { return ranks_; }

private:
    /// By what launchers leave in the environment: Open MPI's, those that speak PMIx, and MPICH's and its relatives'. Without any
    /// MPI would come up as well, but take a daemon and a tenth of a second for it.
    static bool launched() {
        for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE"})
            if (std::getenv(name)) return true;
        return false;
    }
    static void expect(const char* call, int code) {
        if (code != MPI_SUCCESS) throw MpiError{call, code};
    }

    void join(MPI_Comm processes) {
        expect("MPI_Comm_dup", ::MPI_Comm_dup(processes, &processes_));  // nobody else's messages
        expect("MPI_Comm_set_errhandler", ::MPI_Comm_set_errhandler(processes_, MPI_ERRORS_RETURN));
        int rank = 0, n = 1;
        expect("MPI_Comm_rank", ::MPI_Comm_rank(processes_, &rank));
        expect("MPI_Comm_size", ::MPI_Comm_size(processes_, &n));
        ranks_ = {static_cast<std::size_t>(rank), static_cast<std::size_t>(n),
                  [all = processes_](std::size_t to, std::span<const std::byte> out, std::size_t from, std::span<std::byte> in) {
                      const auto process = [](std::size_t r) { return r == Ranks::nobody ? MPI_PROC_NULL : static_cast<int>(r); };
                      MPI_Status status;
                      expect("MPI_Sendrecv", ::MPI_Sendrecv(out.data(), static_cast<int>(out.size()), MPI_BYTE, process(to), 0, in.data(), static_cast<int>(in.size()),
                                                            MPI_BYTE, process(from), 0, all, &status));
                      int received = 0;
                      expect("MPI_Get_count", ::MPI_Get_count(&status, MPI_BYTE, &received));
                      if (received != static_cast<int>(in.size())) throw MpiError{"MPI_Sendrecv: a rank does something else", MPI_ERR_TRUNCATE};
                  }};
    }

    bool     owner_ = false;
    int      exceptions_ = std::uncaught_exceptions();
    MPI_Comm processes_ = MPI_COMM_NULL;
    Ranks    ranks_;
};

}  // namespace prism
