// SPDX-License-Identifier: Apache-2.0
// espalier evaluate
#include "common/error.h"
#include "launch/adapter_files.h"
#include "launch/array_files.h"
#include "launch/commands.h"
#include "train/evaluation.h"

namespace espalier::launch {

ExitCode run_evaluate(const Arguments& arguments) {
  RunConfig run;
  WeightsRequest request;
  std::string split = "test";
  OptionTable table;
  describe_inference(table, run);
  describe(table, request);
  table.add("split", split).help("Split of the dataset to evaluate.");
  if (wants_help(arguments)) {
    print_once("usage: espalier evaluate --run FOLDER [--objective NAME] [--split NAME] [--section.key=value ...]\n\n" +
               table.help());
    return ExitCode::kOk;
  }
  return run_in_session([&](Session& session) {
    const auto loaded = make_worker_with_weights(session, arguments, table, run, request);
    const auto [dataset, info] = open_fitting_dataset(loaded, run.data);
    const auto metrics =
        train::evaluate(*loaded.worker, {info}, dataset, split, run.data, run.train.evaluation_batch_size);
    print_once(nlohmann::json(metrics.front()).dump(2) + "\n");
    return ExitCode::kOk;
  });
}

}  // namespace espalier::launch
