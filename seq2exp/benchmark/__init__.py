"""Our training step beside that of the published form, on one input in one process."""
