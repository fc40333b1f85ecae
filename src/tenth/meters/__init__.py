"""What is measured about a file as llama.cpp runs it; every meter works in a child process."""
