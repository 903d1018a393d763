# prism::cuda: for sources that nvcc compiles and that include prism/cuda.cuh. Exists where the CUDA toolkit, 12.4 or later,
# is found; prism_cuda_version then says which. prism::cudnn, for prism/backend/cuda/cudnn/, exists where cuDNN is found as well.
# Used by the build and by the installed package alike.
set(prism_cuda_version)
find_package(CUDAToolkit 12.4 QUIET)
if(CUDAToolkit_FOUND AND TARGET CUDA::cublasLt)
    set(prism_cuda_version ${CUDAToolkit_VERSION})
    if(NOT TARGET prism::cuda)
        add_library(prism::cuda INTERFACE IMPORTED GLOBAL)
        # The runtime library that CMake links programs of this language with: two of them in a program would not know each other.
        target_link_libraries(prism::cuda INTERFACE
            prism::prism CUDA::cublasLt
            $<IF:$<STREQUAL:$<TARGET_PROPERTY:CUDA_RUNTIME_LIBRARY>,Shared>,CUDA::cudart,CUDA::cudart_static>)
        target_compile_options(prism::cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)  # older CMakes know no cuda_std_20
        # Eigen for sources of nvcc, should they include it: without this it is compiled without vector instructions.
        target_compile_definitions(prism::cuda INTERFACE EIGEN_NO_CUDA)
    endif()
    find_path(PRISM_cudnn_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
    find_library(PRISM_cudnn_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
    mark_as_advanced(PRISM_cudnn_INCLUDE_DIR PRISM_cudnn_LIBRARY)
    if(PRISM_cudnn_INCLUDE_DIR AND PRISM_cudnn_LIBRARY AND NOT TARGET prism::cudnn)
        file(STRINGS ${PRISM_cudnn_INCLUDE_DIR}/cudnn_version.h prism_cudnn_version REGEX "#define CUDNN_(MAJOR|MINOR|PATCHLEVEL) ")
        string(REGEX REPLACE "[^0-9]+([0-9]+)[^0-9]+([0-9]+)[^0-9]+([0-9]+).*" "\\1.\\2.\\3" prism_cudnn_version "${prism_cudnn_version}")
        if(prism_cudnn_version VERSION_GREATER_EQUAL 9.13.1)
            add_library(prism::cudnn INTERFACE IMPORTED GLOBAL)
            target_link_libraries(prism::cudnn INTERFACE prism::cuda ${PRISM_cudnn_LIBRARY})
            target_include_directories(prism::cudnn SYSTEM INTERFACE ${PRISM_cudnn_INCLUDE_DIR})
            target_compile_definitions(prism::cudnn INTERFACE PRISM_WITH_CUDNN)
        endif()
    endif()
    # prism::nccl: prism/backend/cuda/nccl.cuh, for models on several GPUs. Exists where NCCL is found, beside the toolkit or
    # below NCCL_ROOT (Python's wheels hold the library under the name of its version only).
    find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${NCCL_ROOT} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
    find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${NCCL_ROOT} ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
    mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
    if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY AND NOT TARGET prism::nccl)
        add_library(prism::nccl INTERFACE IMPORTED GLOBAL)
        target_include_directories(prism::nccl INTERFACE ${NCCL_INCLUDE_DIR})
        target_link_libraries(prism::nccl INTERFACE prism::cuda ${NCCL_LIBRARY})
        target_compile_definitions(prism::nccl INTERFACE PRISM_WITH_NCCL)
    endif()
endif()
