"""Durable files and the wire: what every other room writes, locks, appends and asks with."""
