"""What stands for a parameter of a streamed block outside of the block's calls: its shape and dtype."""

from __future__ import annotations

from typing import Any, NoReturn

import jax

from endor_jax.errors import UnsupportedError


class StreamedParameter(jax.ShapeDtypeStruct):
    """The shape and dtype of a parameter; computing with it raises UnsupportedError.

    Jitted functions, those of jax.numpy among them, look at its type only: JAX's TypeError names it.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any):
        super().__init__(shape, dtype)
        self._name = name

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsupportedError(
            f"parameter {self._name}",
            got="a read of its value outside of a call of its block",
            expected="reads inside: it is on the device during a call of the block, and not otherwise",
            fix="read it in a method of the block, which is streamed too, or leave the block out of `blocks`",
        )

    __jax_array__ = __array__ = __getitem__ = __iter__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __neg__ = __pow__ = _refuse
    astype = reshape = transpose = dot = sum = mean = min = max = _refuse
    T = mT = at = property(_refuse)
