// SPDX-License-Identifier: Apache-2.0
#include "peft/method.h"
