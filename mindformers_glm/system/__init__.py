"""What any program needs of its machine: files, memory, processors, signals, terminal."""
