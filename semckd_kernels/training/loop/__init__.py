"""The training loop: steps, their records and timers, evaluation, and what is shown of them."""
