"""MARS training: the models, losses, data readers and loops; the only product is a run directory."""
