# SPDX-License-Identifier: Apache-2.0
# espalier_add_test(<name> SOURCES <file>... [LIBS <folder>...] [LINK <target>...] [LABELS <label>...] [RANKS <n>...] [TORCH]
#                   [TIMEOUT <seconds>] [ARGS <argument>...])
# One executable; without RANKS one ctest entry, with RANKS one entry per number, started by mpirun. An entry takes as many of the jobs
# of ctest -j as it has ranks; one with more ranks than jobs runs alone.
# The label gpu is for tests that need a CUDA device: they are part of every build and exit 77 without one, which ctest counts as skipped.
include_guard(GLOBAL)
find_package(GTest REQUIRED)

set(ESPALIER_MPIEXEC_FLAGS "" CACHE STRING "Further flags for mpirun in tests")
# Open MPI 4 reads OMPI_MCA_*, 5 reads PRTE_MCA_* for the launcher's part. More ranks than cores must yield when idle, and must
# not all be bound to core 0.
set(ESPALIER_MPI_ENVIRONMENT
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none
  OMPI_MCA_btl_vader_single_copy_mechanism=none
  PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none)

function(espalier_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "TIMEOUT" "SOURCES;LIBS;LINK;LABELS;RANKS;ARGS")
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES OR NOT arg_LABELS)
    message(FATAL_ERROR "espalier_add_test(${name}): needs SOURCES and LABELS; unknown: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE espalier::build ${arg_LINK} GTest::gtest GTest::gmock)
  foreach(folder IN LISTS arg_LIBS)
    target_link_libraries(${name} PRIVATE espalier::${folder})
  endforeach()
  if(arg_RANKS)
    target_link_libraries(${name} PRIVATE espalier_mpi_test_main)
    if("gpu" IN_LIST arg_LABELS)
      list(APPEND arg_ARGS --needs-device)
    endif()
  elseif("gpu" IN_LIST arg_LABELS)
    target_link_libraries(${name} PRIVATE espalier_gpu_test_main)
  else()
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
  endif()
  if(arg_TORCH)
    target_precompile_headers(${name} REUSE_FROM espalier_precompiled)
  endif()
  target_compile_definitions(${name} PRIVATE ESPALIER_SOURCE_DIR="${PROJECT_SOURCE_DIR}" ESPALIER_BINARY_DIR="${PROJECT_BINARY_DIR}")

  if(NOT arg_RANKS)
    add_test(NAME ${name} COMMAND ${name} ${arg_ARGS})
    set(entries ${name})
  else()
    set(entries)
    foreach(ranks IN LISTS arg_RANKS)
      add_test(NAME ${name}.ranks${ranks}
        COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${ESPALIER_MPIEXEC_FLAGS} $<TARGET_FILE:${name}> --ranks=${ranks} ${arg_ARGS})
      set_tests_properties(${name}.ranks${ranks} PROPERTIES PROCESSORS ${ranks})
      list(APPEND entries ${name}.ranks${ranks})
    endforeach()
  endif()
  set_tests_properties(${entries} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} SKIP_RETURN_CODE 77
    ENVIRONMENT "${ESPALIER_MPI_ENVIRONMENT};OMP_NUM_THREADS=1")
endfunction()
