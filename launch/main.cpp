// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include "model/backbone.h"
int main() { std::printf("%lld\n", (long long)at::zeros({3}).numel()); }
