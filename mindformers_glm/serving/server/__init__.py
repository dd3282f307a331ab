"""The HTTP server of `mindformers-glm serve`: OpenAI's routes, and those of other servers."""
