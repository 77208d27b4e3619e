"""The budget store in Redis or Valkey, shared by many hosts."""
