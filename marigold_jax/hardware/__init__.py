"""What devices can do, and what a program asks of them: read from shapes and compiled text, nothing is run."""
