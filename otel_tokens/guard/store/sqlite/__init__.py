"""The budget store in a SQLite file, shared by the processes of one host."""
