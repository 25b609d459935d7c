# SPDX-License-Identifier: Apache-2.0
# Every external library, found once. Nothing is fetched at configure time: scripts/setup.sh installs what is missing.
include_guard(GLOBAL)

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(LibTorch REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(spdlog REQUIRED)
find_package(nlohmann_json 3.10 REQUIRED)
find_package(xxHash REQUIRED)

# LibTorch's include folder carries another version of fmt than the one that spdlog is compiled with: a folder that holds spdlog's
# own comes first.
find_package(fmt REQUIRED)
get_target_property(_fmt_include fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/fmt_first")
file(CREATE_LINK "${_fmt_include}/fmt" "${PROJECT_BINARY_DIR}/fmt_first/fmt" SYMBOLIC)
target_include_directories(espalier_build BEFORE INTERFACE $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/fmt_first>)

# The MPI build of HDF5 is not thread-safe and speaks the 1.8 interface.
if(HDF5_IS_PARALLEL)
  message(FATAL_ERROR "HDF5: expected the serial build (libhdf5-dev), found the parallel one in ${HDF5_INCLUDE_DIRS}; "
                      "point HDF5_ROOT at the serial installation")
endif()
add_library(espalier_hdf5 INTERFACE)
add_library(espalier::hdf5 ALIAS espalier_hdf5)
target_include_directories(espalier_hdf5 SYSTEM INTERFACE $<BUILD_INTERFACE:${HDF5_INCLUDE_DIRS}>)
target_link_libraries(espalier_hdf5 INTERFACE $<BUILD_INTERFACE:${HDF5_LIBRARIES}>)

set(ESPALIER_HAS_CUDA OFF)
if(NOT ESPALIER_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit QUIET)
  find_program(ESPALIER_NVCC nvcc HINTS "${CUDAToolkit_BIN_DIR}")
  mark_as_advanced(ESPALIER_NVCC)
  if(CUDAToolkit_FOUND AND ESPALIER_NVCC AND LibTorch_CUDA_FOUND)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    endif()
    set(CMAKE_CUDA_COMPILER "${ESPALIER_NVCC}")
    enable_language(CUDA)
    set(ESPALIER_HAS_CUDA ON)
  elseif(ESPALIER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ESPALIER_CUDA=ON: expected nvcc, the CUDA toolkit and a LibTorch with CUDA and NCCL; found "
                        "toolkit=${CUDAToolkit_FOUND}, nvcc=${ESPALIER_NVCC}, LibTorch with CUDA=${LibTorch_CUDA_FOUND}; "
                        "install what is missing or use ESPALIER_CUDA=OFF")
  endif()
endif()
message(STATUS "Espalier: CUDA and NCCL parts ${ESPALIER_HAS_CUDA} (ESPALIER_CUDA=${ESPALIER_CUDA})")

# One precompiled header for every target that sees tensors: reading ATen costs 7 s a file without it.
file(WRITE "${PROJECT_BINARY_DIR}/precompiled.cpp" "// Holds the precompiled header that the other targets share.\n")
add_library(espalier_precompiled OBJECT "${PROJECT_BINARY_DIR}/precompiled.cpp")
target_link_libraries(espalier_precompiled PRIVATE espalier::build espalier::torch spdlog::spdlog)
# Only what nearly every file reads: each further header costs every file seconds of inline functions (the autograd headers 2.3 s).
target_precompile_headers(espalier_precompiled PRIVATE <ATen/ATen.h> <spdlog/fmt/fmt.h>)
