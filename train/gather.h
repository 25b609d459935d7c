// SPDX-License-Identifier: Apache-2.0
// Brings the tensors of all stages to rank 0.
#pragma once

#include <map>
#include <string>

#include "dist/mesh.h"

namespace espalier::train {

/// The union of `tensors` over the stages of replica 0, as CPU copies, on world rank 0; empty elsewhere.
/// Collective: every rank (other replicas only take part in announcing sizes).
std::map<std::string, at::Tensor> gather_stages(dist::Mesh& mesh, const std::map<std::string, at::Tensor>& tensors);

}  // namespace espalier::train
