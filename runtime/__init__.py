"""The composition: models, backends, generation, command line."""
