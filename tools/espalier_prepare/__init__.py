# SPDX-License-Identifier: Apache-2.0
"""Source files + a tokenizer folder -> one HDF5 dataset (docs/dataset_format.md).

Read in this order: command.py (what happens), options.py, rows.py (files -> rows, one reader per format), forms.py,
glue.py, questions.py (rows -> examples), images.py (the same for images, and image -> pixels), labels.py, splits.py,
encoding.py (text -> ids), tasks.py (examples -> arrays), store.py (HDF5).
"""
