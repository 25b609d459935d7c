# SPDX-License-Identifier: Apache-2.0
"""Attaches adapters trained by Espalier to `transformers` models, for inference. See README.md."""

from espalier_hf.adapter import Adapter, AdapterError, read_adapter
from espalier_hf.attach import attach

__all__ = ["Adapter", "AdapterError", "attach", "read_adapter"]
