"""Settings: what the model is (config.json) and how it is run (YAML, command line)."""
