"""What is claimed about speed and memory, as commands: README.md here."""
