"""Triton's interpreter, mended and made faster. ``served.py`` calls ``mend`` where kernels are interpreted.

``_multiply_numbers``: the interpreter (3.6 to 3.9) keeps bf16 numbers as their bits in uint16, and ``tl.dot``
multiplies the bits. They are widened first, as a GPU does.

``_patch_once``: the interpreter swaps the functions of ``triton.language`` for its own at every call of a device
function, and searches the modules for them each time, which takes most of a kernel's time. The swap of a launch holds
for all functions that the kernel calls, and what is swapped is the same for every launch: it is searched for once.

``_drop_checks``: at every sum of integers the interpreter works out whether it overflows, in seven operations, and
then drops the answer, which it only reports in its debug mode.

``_keep_types``: numpy's type of a type of Triton's, which is looked up for every value.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def mend() -> None:
    """Change Triton's interpreter in this process."""
    from triton.runtime import interpreter

    _multiply_numbers(interpreter)
    _drop_checks(interpreter)
    _keep_types(interpreter)
    # an interpreter that keeps no record of what it swaps is as slow as it is
    if hasattr(interpreter, "_LangPatchScope"):
        _patch_once(interpreter)


def _multiply_numbers(interpreter: Any) -> None:
    builder, handle, tl = interpreter.InterpreterBuilder, interpreter.TensorHandle, interpreter.tl
    create_dot = builder.create_dot

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return handle((x.data.astype("uint32") << 16).view("float32"), tl.float32)

    def create_dot_of_numbers(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *rest)

    builder.create_dot = create_dot_of_numbers


class _Swap:
    """The swap of a launch, with the interface of the interpreter's own scope."""

    def __init__(self, changes: list[tuple[Any, str, Any, Any]], missing: Any) -> None:
        self.changes, self.missing, self.active = changes, missing, False

    def begin(self) -> _Swap:
        if not self.active:
            self.active = True
            for owner, name, _, interpreted in self.changes:
                setattr(owner, name, interpreted)
        return self

    def restore(self) -> None:
        self.active = False
        for owner, name, original, _ in reversed(self.changes):
            if original is self.missing:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _patch_once(interpreter: Any) -> None:
    patch_lang, tl = interpreter._patch_lang, interpreter.tl
    swap: _Swap | None = None

    def find() -> _Swap:
        # a function that sees both modules, whichever of them a kernel sees
        scope = patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        changes = [(owner, name, old, owner.__dict__[name]) for owner, name, old in scope._changes]
        scope.restore()
        return _Swap(changes, interpreter._MISSING)

    def patch_once(_: Any) -> _Swap:
        nonlocal swap
        swap = swap or find()
        return swap.begin()

    interpreter._patch_lang = patch_once


def _drop_checks(interpreter: Any) -> None:
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def _keep_types(interpreter: Any) -> None:
    compute, kept = interpreter._get_np_dtype, {}

    def np_dtype(dtype: Any) -> Any:
        # numbers; blocks and pointers have types that cannot be keys
        if type(dtype) is not interpreter.tl.dtype:
            return compute(dtype)
        if dtype.name not in kept:
            kept[dtype.name] = compute(dtype)
        return kept[dtype.name]

    interpreter._get_np_dtype = np_dtype
