"""Training: one loop, its objectives, losses, optimizers, schedules, checkpoints and processes."""
