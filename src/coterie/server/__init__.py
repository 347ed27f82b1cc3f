"""The HTTP server: one process, one thread that steps the engine for each model, an event loop for everybody else."""
