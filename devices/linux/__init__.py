"""The only place that touches sysfs, uevents, netlink and network namespaces."""
