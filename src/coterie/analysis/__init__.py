"""What weights and routing say about a model; nothing here changes one."""
