// SPDX-License-Identifier: Apache-2.0
#include "dist/communicator.h"
