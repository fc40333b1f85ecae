"""What makes a model smaller by structure, and what heals it; a method a file."""
