"""Jobs at their times, and no minute twice. It knows neither e-mail nor webhooks: jobs are handed to it."""
