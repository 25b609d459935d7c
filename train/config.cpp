// SPDX-License-Identifier: Apache-2.0
#include "train/config.h"

#include <utility>

#include "train/metrics.h"

namespace espalier::train {
namespace {

// Of what is counted in an int: above all that makes sense, and nothing is cut off silently.
constexpr double kMostOfAnything = 1 << 20;

}  // namespace

void describe(OptionTable& table, ModelConfig& config) {
  table.add("model.path", config.path)
      .required()
      .help("Hugging Face model folder: config.json and safetensors. It is read, never written.");
  table.add("model.pooling", config.pooling)
      .choices({"auto", "mean"})
      .help(
          "What the task head reads. auto: as the family does it (first token, dense, tanh). mean: the mean of the "
          "attended tokens (of images, of the patches) and one linear layer, the usual linear probe.");
  table.add("model.drop_path", config.drop_path)
      .at_least(0)
      .below(1)
      .help(
          "Stochastic depth of the backbone in training: share of rows for which the highest block leaves out its "
          "attention, and its feed-forward; of the lower blocks in proportion, down to 0 for the lowest. Refused where "
          "it "
          "would drop nothing.");
  table.add("model.compute_type", config.compute_type)
      .choices({"fp32", "bf16", "fp16"})
      .help(
          "Type of frozen weights and activations. Trained tensors, norm statistics and losses are fp32 in any case.");
  table.add("model.device", config.device)
      .choices({"cpu", "cuda"})
      .help("Where tensors live. cuda: each rank takes the device of its index on the node.");
  table.add("model.random_weights", config.random_weights)
      .help(
          "Random numbers in place of the folder's weights, which then needs config.json alone: for measurements at "
          "the true shapes of a model.");
}

void describe(OptionTable& table, ParallelConfig& config) {
  table.add("parallel.stages", config.stages)
      .at_least(1)
      .at_most(kMostOfAnything)
      .help("Pipeline stages that the backbone is cut into. stages x replicas must equal the ranks of the job.");
  table.add("parallel.replicas", config.replicas)
      .at_least(0)
      .at_most(kMostOfAnything)
      .help("Data-parallel replicas of the whole pipeline. 0: ranks / stages.");
  table.add("parallel.schedule", config.schedule)
      .choices({"1f1b", "gpipe"})
      .help("Order of forwards and backwards. gpipe keeps all micro-batches alive, 1f1b at most one per later stage.");
  table.add("parallel.first_blocks", config.first_blocks)
      .help("First block of the stages 1, 2, ... for a cut of your own. Empty: equal numbers of blocks.");
  table.add("parallel.threads", config.threads)
      .at_least(0)
      .at_most(kMostOfAnything)
      .unit("threads")
      .help(
          "CPU threads per rank. 0: the cores that a rank may use, divided by the ranks of its node. Part of the "
          "numeric configuration: equal threads give equal bits.");
}

void describe(OptionTable& table, TrainConfig& config) {
  auto best_metrics = deciding_metrics();
  best_metrics.insert(best_metrics.begin(), "auto");
  table.add("train.seed", config.seed)
      .help(
          "Seed of sample order, dropout and initial values. Each random number is a function of the seed and its "
          "place.");
  table.add("train.initial_adapter", config.initial_adapter)
      .help(
          "Adapter folder, Espalier's or PEFT's LoRA, whose tensors training starts from; its peft options hold where "
          "file and flags say nothing. Empty: from the start that the method has.");
  table.add("train.epochs", config.epochs).at_least(1).unit("epochs").help("Passes over the training split.");
  table.add("train.max_steps", config.max_steps)
      .at_least(0)
      .unit("steps")
      .help("Optimizer steps in place of epochs; the learning-rate schedule ends there. 0: by epochs.");
  table.add("train.stop_at_step", config.stop_at_step)
      .at_least(0)
      .unit("steps")
      .help(
          "Save and stop after this step with exit code 75, as a stop signal would; the schedule does not change. 0: "
          "never.");
  table.add("train.evaluate_every_steps", config.evaluate_every_steps)
      .at_least(0)
      .unit("steps")
      .help("Validation every so many steps. 0: at the end of every epoch.");
  describe_evaluation(table, config);
  table.add("train.best_metric", config.best_metric)
      .choices(std::move(best_metrics))
      .help(
          "Validation metric that decides which weights are the best. auto: accuracy for classes and choices, spearman "
          "for regression, f1 for multi_label, loss where targets are tokens. accuracy_f1: the mean of both. "
          "correlation: the mean of pearson and spearman.");
  table.add("train.patience", config.patience)
      .at_least(0)
      .unit("evaluations")
      .help("Stop after so many evaluations without a better metric. 0: never stop early.");
  table.add("train.restore_best", config.restore_best)
      .help("End with the trained tensors of the best evaluation instead of the last step's.");
  table.add("train.batched", config.batched)
      .help(
          "Several objectives: those whose side networks have one shape take a step as grouped matrix products, which "
          "is faster where rows are few and gives each the bits that it gives alone but for the last.");
}

void describe_evaluation(OptionTable& table, TrainConfig& config) {
  table.add("train.evaluation_batch_size", config.evaluation_batch_size)
      .at_least(1)
      .unit("rows")
      .help("Rows per forward in evaluation and prediction.");
}

void describe(OptionTable& table, CheckpointConfig& config) {
  table.add("checkpoint.every_steps", config.every_steps)
      .at_least(0)
      .unit("steps")
      .help("Save every so many steps. 0: at the end of every epoch.");
  table.add("checkpoint.keep", config.keep)
      .at_least(0)
      .at_most(kMostOfAnything)
      .help("Newest checkpoints that stay, good or damaged since. 0: all.");
  table.add("checkpoint.resume", config.resume)
      .choices({"auto", "never", "must"})
      .help(
          "auto: go on from the newest good checkpoint if there is one. never: refuse a run folder that has one. must: "
          "refuse to start without one.");
}

void describe(OptionTable& table, RunFolderConfig& config) {
  table.add("run.folder", config.folder)
      .required()
      .help("Folder of this run: config.ini, metrics.jsonl, checkpoints/, adapter/, summary.json.");
}

}  // namespace espalier::train
