# SPDX-License-Identifier: Apache-2.0
"""Generated texts -> metrics (docs/generate.md).

Read in this order: command.py (what happens), generated.py (token ids -> text), references.py (what the texts should
be), metrics.py, and the formulas that no package has: cider.py, vqa.py, classes.py.
"""
