"""What makes training fast: measured choices, compiled networks, features instead of images, the profile."""
