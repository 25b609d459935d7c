# SPDX-License-Identifier: Apache-2.0
"""Watching and changing the calls of modules of a running model."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

Call = dict[str, object]  # arguments of one call by name


def arguments_of(module: nn.Module, args: tuple, kwargs: dict) -> Call:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    call = dict(bound.arguments)
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind == inspect.Parameter.VAR_KEYWORD:
            call.update(call.pop(name, {}))
    return call


def state_of(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def with_state(output: object, state: torch.Tensor) -> object:
    return (state, *output[1:]) if isinstance(output, tuple) else state


def turn_cache_off(model: nn.Module) -> None:
    """For what keeps no states of earlier tokens: generation then gives the whole text again at every step."""
    model.config.use_cache = False
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = False


def on_output(module: nn.Module, change: Callable[[Call, object], object]) -> None:
    """`change` gets the arguments and the output of every call; what it returns, unless None, is the output."""
    module.register_forward_hook(lambda _, args, kwargs, output: change(arguments_of(module, args, kwargs), output), with_kwargs=True)


def on_input(module: nn.Module, look: Callable[[Call], None]) -> None:
    module.register_forward_pre_hook(lambda _, args, kwargs: look(arguments_of(module, args, kwargs)), with_kwargs=True)
