# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch by its files: the CMake package inside the CUDA wheel demands a CUDA toolkit even for CPU use.
#
# Looks in CMAKE_PREFIX_PATH (a libtorch archive, or a site-packages/torch folder), then in the project's .venv.
# Targets:   espalier::torch (CPU), espalier::torch_cuda (only where LibTorch has CUDA and NCCL headers are there)
# Variables: LibTorch_FOUND, LibTorch_CUDA_FOUND, LibTorch_VERSION, LibTorch_ROOT_DIR

file(GLOB _venv_torch "${CMAKE_CURRENT_LIST_DIR}/../.venv/lib/python3*/site-packages/torch")
find_path(LibTorch_ROOT_DIR NAMES include/ATen/ATen.h HINTS ${CMAKE_PREFIX_PATH} PATHS ${_venv_torch} NO_DEFAULT_PATH)
if(NOT LibTorch_ROOT_DIR)
  find_path(LibTorch_ROOT_DIR NAMES include/ATen/ATen.h)
endif()
set(_include "${LibTorch_ROOT_DIR}/include")
set(_lib "${LibTorch_ROOT_DIR}/lib")

find_library(LibTorch_CPU_LIBRARY torch_cpu PATHS "${_lib}" NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 PATHS "${_lib}" NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda PATHS "${_lib}" NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda PATHS "${_lib}" NO_DEFAULT_PATH)
mark_as_advanced(LibTorch_ROOT_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY LibTorch_C10_CUDA_LIBRARY)

set(LibTorch_VERSION "")
if(EXISTS "${_include}/torch/headeronly/version.h")
  set(_version_file "${_include}/torch/headeronly/version.h")
elseif(EXISTS "${_include}/torch/csrc/api/include/torch/version.h")
  set(_version_file "${_include}/torch/csrc/api/include/torch/version.h")
endif()
if(_version_file)
  file(STRINGS "${_version_file}" _lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" LibTorch_VERSION "${_lines}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_ROOT_DIR VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "run scripts/setup.sh (it makes .venv with the pinned LibTorch), or pass -DCMAKE_PREFIX_PATH=<libtorch folder>")

set(LibTorch_CUDA_FOUND OFF)
if(LibTorch_FOUND AND NOT TARGET espalier::torch)
  # The wheel's libraries need pip packages beside it (libcudart, libcupti) that the linker must be told of.
  file(GLOB _wheel_libs "${LibTorch_ROOT_DIR}/../nvidia/*/lib")
  add_library(espalier::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(espalier::torch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_include};${_include}/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${_include};${_include}/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES "${LibTorch_CPU_LIBRARY};${LibTorch_C10_LIBRARY}")
  set(_rpath "-Wl,-rpath,${_lib}")
  foreach(_dir IN LISTS _wheel_libs)
    list(APPEND _rpath "-Wl,-rpath-link,${_dir}")
  endforeach()
  set_target_properties(espalier::torch PROPERTIES INTERFACE_LINK_OPTIONS "${_rpath}")

  find_path(LibTorch_NCCL_INCLUDE_DIR nccl.h PATHS "${LibTorch_ROOT_DIR}/../nvidia/nccl/include" NO_DEFAULT_PATH)
  find_file(LibTorch_NCCL_LIBRARY NAMES libnccl.so.2 libnccl.so PATHS "${LibTorch_ROOT_DIR}/../nvidia/nccl/lib" NO_DEFAULT_PATH)
  mark_as_advanced(LibTorch_NCCL_INCLUDE_DIR LibTorch_NCCL_LIBRARY)
  # The wheel's own NCCL, so that one libnccl is loaded, never two.
  if(LibTorch_CUDA_LIBRARY AND LibTorch_C10_CUDA_LIBRARY AND LibTorch_NCCL_INCLUDE_DIR AND LibTorch_NCCL_LIBRARY)
    set(LibTorch_CUDA_FOUND ON)
    add_library(espalier::torch_cuda INTERFACE IMPORTED GLOBAL)
    get_filename_component(_nccl_dir "${LibTorch_NCCL_LIBRARY}" DIRECTORY)
    set_target_properties(espalier::torch_cuda PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_NCCL_INCLUDE_DIR}"
      INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${LibTorch_NCCL_INCLUDE_DIR}"
      INTERFACE_LINK_LIBRARIES "espalier::torch;${LibTorch_NCCL_LIBRARY};${LibTorch_C10_CUDA_LIBRARY}"
      # libtorch_cuda registers its kernels when loaded; nothing refers to it by symbol.
      INTERFACE_LINK_OPTIONS "-Wl,--no-as-needed,${LibTorch_CUDA_LIBRARY},--as-needed;-Wl,-rpath,${_nccl_dir}")
  endif()
endif()
