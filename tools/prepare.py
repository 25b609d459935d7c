#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Source files + a tokenizer folder -> one HDF5 dataset. See `prepare.py --help` and docs/dataset_format.md."""

import sys

from espalier_prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
