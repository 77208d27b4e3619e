"""The budget store in the memory of one process."""
