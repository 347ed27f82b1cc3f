"""Files <-> (config, named tensors) <-> model: every folder layout of the field, read strictly and written whole."""
