"""A run on disk: its folder, checkpoints, rows, lock, and what it resumes from."""
