# SPDX-License-Identifier: Apache-2.0
"""Tables of text + a tokenizer folder -> one HDF5 dataset (docs/dataset_format.md).

Read in this order: command.py (what happens), rows.py (files -> rows), labels.py, splits.py, encoding.py (text -> ids),
store.py (HDF5).
"""
