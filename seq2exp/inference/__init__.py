"""Using a trained model: evaluation, prediction, discovery, pictures."""
