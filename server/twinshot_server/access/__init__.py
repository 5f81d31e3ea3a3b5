"""Who may call, and how much: API keys, their limits, and what surrounds every request."""
