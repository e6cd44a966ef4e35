"""Which results of a traced function are its arguments, as they came."""

from __future__ import annotations

from jax.extend import core

_CALLS = {"jit": "jaxpr", "remat2": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
"""Primitives that call one jaxpr with their operands, which has that name. Others give arguments back."""


def argument(jaxpr: core.Jaxpr, result: core.Var | core.Literal) -> int | None:
    """The index of the argument that a result of a jaxpr is, inside of calls too; None if it is computed."""
    if isinstance(result, core.Literal):
        return None
    if result in jaxpr.invars:
        return jaxpr.invars.index(result)
    for equation in jaxpr.eqns:
        if result in equation.outvars and equation.primitive.name in _CALLS:
            called = equation.params[_CALLS[equation.primitive.name]]
            inner: core.Jaxpr = called.jaxpr if isinstance(called, core.ClosedJaxpr) else called
            index = argument(inner, inner.outvars[equation.outvars.index(result)])
            return None if index is None else argument(jaxpr, equation.invars[index])
    return None
