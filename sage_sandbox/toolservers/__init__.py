"""Which tool servers a project names, and what each definition says; pure but for reading two files."""
