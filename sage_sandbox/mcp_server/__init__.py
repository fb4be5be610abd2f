"""The server that agents use: six tools over MCP, and the long ones as tasks."""
