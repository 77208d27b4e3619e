"""The store wrapped for `store_fail: local`: without its store a process goes on by what it last knew."""
