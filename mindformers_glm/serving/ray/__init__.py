"""Several machines: the Ray Serve application, and `predict --ray`."""
