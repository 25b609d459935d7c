# SPDX-License-Identifier: Apache-2.0
# install(): headers, libraries, the program, and a package that find_package(espalier) finds (tests/install is a consumer).
include_guard(GLOBAL)
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(libraries GLOBAL PROPERTY ESPALIER_LIBRARIES)
set_target_properties(espalier_build PROPERTIES EXPORT_NAME build)
set_target_properties(espalier_hdf5 PROPERTIES EXPORT_NAME hdf5)
install(TARGETS espalier_build espalier_hdf5 ${libraries} EXPORT espalierTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS espalier_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
foreach(folder IN ITEMS common dist data model peft optim checkpoint train launch)
  install(DIRECTORY ${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/espalier FILES_MATCHING PATTERN "*.h")
endforeach()
install(EXPORT espalierTargets NAMESPACE espalier:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/espalier)

configure_package_config_file(cmake/espalierConfig.cmake.in "${PROJECT_BINARY_DIR}/espalierConfig.cmake"
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/espalier)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/espalierConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/espalierConfig.cmake" "${PROJECT_BINARY_DIR}/espalierConfigVersion.cmake"
  cmake/FindLibTorch.cmake cmake/FindxxHash.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/espalier)
