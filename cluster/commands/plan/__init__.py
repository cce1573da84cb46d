"""`launch.py plan`: predict from a sample of responses whether training can work, and with which group size."""
