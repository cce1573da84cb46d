"""Verifier processes that can be killed. The rest of the package uses `pool.Sandbox`. Ray-free."""
