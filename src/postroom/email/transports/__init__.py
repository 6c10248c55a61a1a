"""The ways out of the house: SMTP, Resend, maildir; several of them are a Failover."""

from postroom.email.transports.base import Start, Transport
from postroom.email.transports.failover import Failover, Pause
from postroom.email.transports.urls import from_urls

__all__ = ["Failover", "Pause", "Start", "Transport", "from_urls"]
