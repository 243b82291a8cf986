"""The cluster: a real API server, or a folder of YAML."""
