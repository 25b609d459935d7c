// SPDX-License-Identifier: Apache-2.0
#include "train/resampling.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <chrono>

#include "common/digest.h"
#include "common/error.h"
#include "dist/agree.h"

namespace espalier::train {
namespace {

/// The last bits of a factorisation depend on the number of threads: one, whatever the run has.
class OneThread {
 public:
  OneThread() { at::set_num_threads(1); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;
  ~OneThread() { at::set_num_threads(former_); }

 private:
  int former_ = at::get_num_threads();
};

at::Tensor digest_of(peft::Resampling& resampling) {
  Digest digest;
  for (int j = 0; j < resampling.num_weights(); ++j) {
    for (const auto& [name, tensor] : resampling.parts(j)) {
      const auto host = tensor.to(at::kCPU).contiguous();
      digest.update(name);
      digest.update(host.const_data_ptr(), host.nbytes());
    }
  }
  auto words = at::zeros({2}, at::kLong);
  for (int k = 0; k < 2; ++k) {
    const auto word = std::stoull(digest.hex().substr(std::size_t{16} * static_cast<std::size_t>(k), 16), nullptr, 16);
    words[k] = static_cast<std::int64_t>(word);
  }
  return words;
}

}  // namespace

ResamplingEvents::ResamplingEvents(peft::Method& method, dist::Mesh& mesh, optim::AdamW& optimizer,
                                   std::int64_t steps_per_epoch)
    : resampling_(method.resampling()), mesh_(mesh), optimizer_(optimizer), steps_per_epoch_(steps_per_epoch) {
  for (int j = 0; resampling_ != nullptr && j < resampling_->num_weights(); ++j) {
    for (const auto& [name, tensor] : resampling_->parts(j)) {
      restarted_.insert(name);
    }
  }
}

bool ResamplingEvents::run_before(std::int64_t step) {
  const auto event = resampling_ != nullptr ? resampling_->event_before(step, steps_per_epoch_) : std::nullopt;
  if (!event) {
    return false;
  }
  const auto start = std::chrono::steady_clock::now();
  require_equal_replicas("before");
  share_out(*event);
  optimizer_.restart(restarted_);
  require_equal_replicas("after");
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  seconds_ += taken.count();
  return true;
}

void ResamplingEvents::resume_at(std::int64_t step) {
  std::int64_t last = step;
  while (resampling_ != nullptr && last-- > 0) {
    if (resampling_->event_before(last, steps_per_epoch_)) {
      optimizer_.set_num_steps(last);
      optimizer_.restart(restarted_);
      break;
    }
  }
  optimizer_.set_num_steps(step);
}

void ResamplingEvents::require_equal_replicas(const char* when) const {
  const auto& place = mesh_.place;
  if (place.num_replicas == 1) {
    return;
  }
  auto& control = *mesh_.control;
  const auto own = digest_of(*resampling_);
  std::vector<at::Tensor> all(static_cast<std::size_t>(control.num_ranks()));
  for (auto& other : all) other = at::zeros_like(own);
  control.all_gather(all, own).wait();
  const bool is_equal =
      at::equal(all[static_cast<std::size_t>(place.world_rank_of(place.stage_index, /*replica=*/0))], own);
  dist::require_all(
      control,
      is_equal ? std::string()
               : fmt::format("stage {}: expected weights and factors of replica {} {} a resampling to be those of "
                             "replica 0, found other bits; a rank computed something else: look at the hardware",
                             place.stage_index, place.replica_index, when),
      ExitCode::kInternal, "comparing the replicas");
}

void ResamplingEvents::share_out(std::int64_t event) {
  const auto& place = mesh_.place;
  {
    const OneThread one_thread;
    const at::NoGradGuard no_grad;
    for (int j = place.replica_index; j < resampling_->num_weights(); j += place.num_replicas) {
      resampling_->resample(j, event);
    }
  }
  if (place.num_replicas == 1) {
    return;
  }
  const dist::TrafficLabelScope label(*mesh_.replicas, "resampling");
  std::vector<dist::Work> pending;
  for (int j = 0; j < resampling_->num_weights(); ++j) {
    for (const auto& [name, tensor] : resampling_->parts(j)) {
      pending.push_back(mesh_.replicas->broadcast(tensor, j % place.num_replicas));
    }
  }
  for (auto& work : pending) work.wait();
}

}  // namespace espalier::train
