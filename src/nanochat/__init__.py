"""NanoChat: a small ChatGPT you can train, understand, run and serve yourself."""
