"""Durable files, locks, appended rows and the HTTP client, shared by all other packages."""
