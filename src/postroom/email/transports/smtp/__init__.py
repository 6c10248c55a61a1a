"""SMTP: handshake by aiosmtplib, transactions by a lean loop of our own, connections kept."""

from postroom.email.transports.smtp.handshake import SmtpServer
from postroom.email.transports.smtp.transport import SmtpTransport

__all__ = ["SmtpServer", "SmtpTransport"]
