"""What tests in Triton's interpreter need."""

from typing import Any


def repair_bfloat16(monkeypatch: Any) -> None:
    """Let Triton's interpreter multiply the numbers; it multiplies their bits, read as integers."""
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder

    def create_dot(self, a, b, *rest):
        bfloat16 = a.dtype == language.bfloat16
        a, b = (self.create_fp_ext(x, language.float32) if bfloat16 else x for x in (a, b))
        return original(self, a, b, *rest)

    original = InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, 'create_dot', create_dot)
