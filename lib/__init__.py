"""What surrounds the model: settings, data, graphs, metrics, training and reporting. Nothing here imports `model`."""
