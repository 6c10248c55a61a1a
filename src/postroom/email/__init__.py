"""E-mail: its rows, their rendering, and the transports that take them out."""
