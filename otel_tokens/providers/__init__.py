"""Data about SDKs and hosts: what to patch, where facts stand, which provider bills. No SDK is imported."""
