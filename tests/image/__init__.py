"""The image: its files here, and under `make image-test` the image itself, built and run."""
