"""TeleLogs: find the root cause of a low throughput in a 5G drive test, among eight."""
