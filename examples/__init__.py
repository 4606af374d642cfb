"""Programs that use the library on real data; run them from the repository root."""
