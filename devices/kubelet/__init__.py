"""What the kubelet says and is told about devices: PodResources, checkpoints, device plugins."""
