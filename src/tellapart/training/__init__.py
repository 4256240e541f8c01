"""Training: one loop, its tasks, callbacks, losses, optimizers, schedules, checkpoints and processes."""
