"""Several network interfaces for a Kubernetes pod: the CNI meta plugin, its daemon and its tools."""
