"""Open-loop load on any server that speaks OpenAI's images API, and what came of it."""
