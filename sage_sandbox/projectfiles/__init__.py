"""The files that a project has for sage-sandbox, for people, editors and agents; what `init` writes, and how."""
