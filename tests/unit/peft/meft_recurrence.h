// SPDX-License-Identifier: Apache-2.0
// MEFT's recurrence under ordinary autograd: one graph over the whole chain, nothing recomputed. It is the oracle of
// the tests of MEFT, with what they share.
#pragma once

#include "stages.h"

namespace espalier::peft {

/// Adapters of rank 4.
MethodConfig meft(std::int64_t variant, MeftConfig options = {});

TinyConfig of_depth(std::int64_t num_blocks, double dropout = 0.1);

/// Moves the adapters off their small start, so that no term is too small to be seen.
void stir_adapters(const Stages& stages);

/// Forward and backward by the equations of docs/methods/meft.md with the one stage's layers and trained tensors, whose
/// adapters are read by name.
Step step_by_the_book(const Stages& stages, const MeftConfig& config, const model::NamedTensors& batch,
                      const LossGradient& loss_gradient = logits_gradient);

void expect_same_bits(const Step& found, const Step& expected);

/// Largest difference of a gradient, relative to the gradient's largest element.
double gradient_error(const Step& found, const Step& expected);

/// As training_context(), but of a micro-batch in which an inexact inversion is measured.
model::ForwardContext measured_context();

/// Largest relative error of the streams of the first stage that were inverted.
double inversion_error(const Stages& stages);

}  // namespace espalier::peft
