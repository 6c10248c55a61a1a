"""Servers for the tests of transports, on loopback, in the test's own event loop."""
