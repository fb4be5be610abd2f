"""The face for agents: six tools, resources and prompts over the Model Context Protocol."""
