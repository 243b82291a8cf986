"""The installation on a host: the shim, the CNI configuration that names it, and the way back.

`host.install_host` and `uninstall.uninstall_host` are for people, `keeper.ConfKeeper` is the daemon's.
"""
