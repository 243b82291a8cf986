"""DPDK: drivers, IOMMU groups, hugepages and EAL arguments."""
