"""The engine that e-mails and webhooks share: claim, attempt, settle. It knows neither of them."""
