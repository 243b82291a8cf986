"""A worker thread's visit to a pod: one socket on either side of it, for all that is done on the way.

A pod's networks share one: eight of them in a visit each would wait for one another's turn at the interpreter.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import TracebackType
from typing import Self

from devices.errors import NamespaceError
from devices.linux import link_changes, netns, rtnetlink


class Visit:
    """Of one thread, which is on the node except within `inside`. Sockets and files are opened when they are needed.

    >>> with Visit(call.netns) as visit: ...
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._held = ExitStack()
        self._is_inside = False
        self._masters: dict[str, link_changes.Found] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @cached_property
    def node(self) -> socket.socket:
        """A netlink socket of the node (see `devices.linux.rtnetlink`).

        :raises KernelError: out of descriptors or memory.
        """
        return self._held.enter_context(rtnetlink.connect())

    @cached_property
    def pod(self) -> socket.socket:
        """A netlink socket of the pod.

        :raises NamespaceError: the pod is gone. :raises KernelError: out of descriptors or memory.
        """
        with self.inside():
            return self._held.enter_context(rtnetlink.connect())

    @cached_property
    def namespace(self) -> int:
        """A descriptor of the pod's namespace.

        :raises NamespaceError: it is gone.
        """
        descriptor = netns.open_file(self.path)
        self._held.callback(os.close, descriptor)
        return descriptor

    @cached_property
    def node_namespace(self) -> int:
        """A descriptor of the node's namespace."""
        descriptor = netns.open_file(netns.HERE)
        self._held.callback(os.close, descriptor)
        return descriptor

    def master(self, name: str) -> link_changes.Found | None:
        """The node's interface of that name, as it was when it was first found on this visit; None for none.

        :raises KernelError: the kernel could not say.
        """
        found = self._masters.get(name) or link_changes.find(self.node, name)
        if found is not None:
            self._masters[name] = found
        return found

    @property
    def is_possible(self) -> bool:
        """Whether there is a pod.

        :raises KernelError: out of descriptors or memory.
        """
        try:
            self.pod  # noqa: B018 (to have it is the question)
        except NamespaceError as error:
            if error.retry:
                raise
            return False
        return True

    @contextmanager
    def inside(self) -> Iterator[None]:
        """In the block the thread is in the pod: for values below /proc/sys/net, which are those of the thread's own.

        :raises NamespaceError: the pod is gone.
        """
        if self._is_inside:
            yield
            return
        with netns.inside(self.path, self.namespace, home=self.node_namespace):
            self._is_inside = True
            try:
                yield
            finally:
                self._is_inside = False
