from __future__ import annotations

from typing import Any

from buildbot.config import ConfigErrors
from buildbot.worker.protocols.manager.msgpack import Dispatcher, MsgManager
from twisted.internet import defer
from twisted.trial import unittest

from buildbot_kvm import listen_for_msgpack_on


class Listening(unittest.TestCase):
    def setUp(self) -> None:
        self.patch(MsgManager, "dispatcher_class", Dispatcher)

    @defer.inlineCallbacks
    def open_port(self, port: str | int) -> Any:
        manager = MsgManager()
        manager.startService()
        self.addCleanup(manager.stopService)
        registration = yield manager.register(port, "worker", "password", lambda *_: None)
        self.addCleanup(registration.unregister)
        (dispatcher,) = manager.dispatchers.values()
        return dispatcher.port.getHost()

    @defer.inlineCallbacks
    def check(self, address: str, port: str | int) -> Any:
        listen_for_msgpack_on(address)
        opened = yield self.open_port(port)
        self.assertEqual(opened.host, address)
        self.assertGreater(opened.port, 0)

    def test_port_given_as_text_is_open_on_that_address_alone(self) -> defer.Deferred[Any]:
        return self.check("127.0.0.1", "0")

    def test_port_given_as_number_is_open_on_that_address_alone(self) -> defer.Deferred[Any]:
        return self.check("127.0.0.1", 0)

    def test_second_reading_of_the_configuration_changes_nothing(self) -> defer.Deferred[Any]:
        listen_for_msgpack_on("127.0.0.1")
        return self.check("127.0.0.1", 0)

    def test_no_address_is_refused(self) -> None:
        with self.assertRaises(ConfigErrors):
            listen_for_msgpack_on("localhost")
