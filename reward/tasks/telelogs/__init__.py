"""TeleLogs: find the root cause, one of eight, of a low throughput in a 5G drive test."""
