"""Federated learning: networks, gradient quantisation and the simulated training rounds."""
