#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `espalier generate` wrote + references -> text metrics as JSON. See `score.py --help` and docs/generate.md."""

import sys

from espalier_score.command import main

if __name__ == "__main__":
    sys.exit(main())
