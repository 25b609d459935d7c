# SPDX-License-Identifier: Apache-2.0
# How a library of Espalier is declared: espalier_add_library(<folder> SOURCES ... DEPENDS <folder> ... LINK <external> ...).
# The layers are the link lines: what a folder does not name in DEPENDS does not link.
include_guard(GLOBAL)
include(GNUInstallDirs)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# -fPIC below instead of CMAKE_POSITION_INDEPENDENT_CODE: programs would get -fPIE, which the shared precompiled header refuses.

find_program(ESPALIER_CCACHE ccache)
mark_as_advanced(ESPALIER_CCACHE)
if(ESPALIER_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # A precompiled header defeats ccache unless it may ignore time stamps (see -fpch-preprocess below).
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${ESPALIER_CCACHE})
endif()

add_library(espalier_build INTERFACE)
add_library(espalier::build ALIAS espalier_build)
target_compile_features(espalier_build INTERFACE cxx_std_20)
target_include_directories(espalier_build INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                                    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/espalier>)
target_compile_options(espalier_build INTERFACE
  $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wnon-virtual-dtor;-Wno-unknown-pragmas;-fpch-preprocess;-fPIC>>)
if(ESPALIER_SANITIZE)
  target_compile_options(espalier_build INTERFACE $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-omit-frame-pointer;-fno-sanitize-recover=undefined>>)
  target_link_options(espalier_build INTERFACE $<BUILD_INTERFACE:-fsanitize=address,undefined>)
endif()

# espalier_add_library(<name> SOURCES <file>... [DEPENDS <folder>...] [LINK <target>...] [PRIVATE_LINK <target>...] [TORCH])
# TORCH links LibTorch and uses the shared precompiled header.
function(espalier_add_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "" "SOURCES;DEPENDS;LINK;PRIVATE_LINK")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "espalier_add_library(${name}): unknown arguments ${arg_UNPARSED_ARGUMENTS}")
  endif()
  set(target espalier_${name})
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(espalier::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  target_link_libraries(${target} PUBLIC espalier::build ${arg_LINK} PRIVATE ${arg_PRIVATE_LINK})
  foreach(folder IN LISTS arg_DEPENDS)
    target_link_libraries(${target} PUBLIC espalier::${folder})
  endforeach()
  if(arg_TORCH)
    target_link_libraries(${target} PUBLIC espalier::torch)
    target_precompile_headers(${target} REUSE_FROM espalier_precompiled)
  endif()
  set_property(GLOBAL APPEND PROPERTY ESPALIER_LIBRARIES ${target})
endfunction()
