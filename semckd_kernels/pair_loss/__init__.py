"""The pair loss: its operators, their checks, and its in-place backward. Its public face is ``functional``."""
