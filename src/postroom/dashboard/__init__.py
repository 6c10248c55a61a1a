"""The dashboard: what a person sees of both queues, and mends, in a browser."""
