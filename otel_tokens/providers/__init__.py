"""What differs between SDKs, and who bills at which host: data, no SDK import."""
