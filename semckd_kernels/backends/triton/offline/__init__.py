"""What a launch on a GPU would make Triton compile, for compilers that run without one."""
