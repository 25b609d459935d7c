// SPDX-License-Identifier: Apache-2.0
// espalier info: versions, devices and build.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <H5public.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/version.h>
#include <torch/headeronly/version.h>

#include "common/error.h"
#include "dist/mpi_communicator.h"
#include "launch/commands.h"
#include "train/device.h"

namespace espalier::launch {

ExitCode run_info(const Arguments& arguments) {
  if (!arguments.empty() && !wants_help(arguments)) {
    throw ConfigError(fmt::format("espalier info: expected no arguments, found '{}'", arguments.front()));
  }
  const auto row = [](const char* name, const std::string& value) { return fmt::format("  {:<12} {}\n", name, value); };
  std::string text = fmt::format("espalier {}\n", ESPALIER_VERSION);
  text += row("build", fmt::format("{}, CUDA and NCCL parts {}", ESPALIER_BUILD_TYPE, ESPALIER_CUDA_TEXT));
  text += row("LibTorch", TORCH_VERSION) + row("MPI", dist::mpi_library_version()) +
          row("HDF5", fmt::format("{}.{}.{}", H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE)) +
          row("spdlog", fmt::format("{}.{}.{}", SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH));
  text += row("CPU",
              fmt::format("{}, {} core(s) for this process", at::get_cpu_capability(), train::count_cores().allowed));
  const auto& context = at::globalContext();
  text +=
      row("GPU", context.hasCUDA() ? fmt::format("{} device(s)", at::detail::getCUDAHooks().deviceCount()) : "none");
  print_once(text);
  return ExitCode::kOk;
}

}  // namespace espalier::launch
