"""An original model's pass in float64, its own casts to float32 included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Precise(TorchFunctionMode):
    """Within it, what is float64 stays so: modules of transformers turn norms and softmax into float32 on their way.

    Tables of rotary positions are made in float32 and stay as they are. Agreement: tests/model/test_selfcheck.py.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch with float64 in place of float32, where it is given something in float64."""
        named = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(map(_wide, args))
            named = {key: _wide(value) for key, value in named.items()}
        return func(*args, **named)


def _wide(given: Any) -> Any:
    return torch.float64 if given is torch.float32 else given
