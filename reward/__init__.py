"""Tasks, their prompts and verifiers, and the service that scores responses."""
