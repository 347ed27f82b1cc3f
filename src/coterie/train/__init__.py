"""Pretraining: data, loss, optimizer, schedule, loop, state. `train.recipe` reads the TOML that drives it."""
